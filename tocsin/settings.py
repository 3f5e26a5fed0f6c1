"""Every setting of every part, from `TOCSIN_*` variables, a `.env` file and flags, in rising order.

`load_settings` is the one place that reads the environment. An invalid value raises OperatorError with exit code 2 and
names the setting, the value and what is allowed.
"""

from __future__ import annotations

import os
import re
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import BeforeValidator, ByteSize, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from tocsin.duration import parse_duration
from tocsin.errors import OperatorError
from tocsin.nats_login import NatsLogin
from tocsin.subject import Pattern, encode_token

_PASSWORD = re.compile(r"(//[^:/@\s]*):[^@\s]*@")
_STREAM = re.compile(r"[^\s.*>/\\]{1,255}")
_ORIGIN = re.compile(r"(https?|wss?)://[^/?#@\s]+/?")
SECRETS = ("jwt_secret", "database_url", "replica_url", "nats_url", "token")
_SIZES = "write a number of bytes, or one such as 900KiB or 8GiB"
DEFAULT_NATS_URL = "nats://127.0.0.1:4222"

Port = Annotated[int, Field(ge=0, le=65535)]
Duration = Annotated[timedelta, BeforeValidator(lambda v: parse_duration(v) if isinstance(v, str) else v)]
Names = Annotated[
    tuple[str, ...],
    NoDecode,
    BeforeValidator(lambda v: tuple(n.strip() for n in v.split(",") if n.strip()) if isinstance(v, str) else v),
]


class Settings(BaseSettings):
    """The field `x_y` is the variable `TOCSIN_X_Y` and, where a verb has it, the flag `--x-y`."""

    model_config = SettingsConfigDict(env_prefix="TOCSIN_", env_file=".env", extra="ignore", frozen=True, validate_default=False)

    database_url: str | None = Field(None, description="The source database, postgresql://user@host:5432/name; a direct connection, no transaction pooler")
    replica_url: str | None = Field(None, description="The logical replica that the checker audits")
    nats_url: str = Field(DEFAULT_NATS_URL, description="NATS with JetStream; several servers separated by commas")
    nats_creds: Path | None = Field(None, description="File with a NATS user's credentials (JWT and seed), as nsc writes it")
    nats_nkey_seed: Path | None = Field(None, description="File with a NATS user's NKEY seed; instead of credentials")
    nats_tls_ca: Path | None = Field(None, description="PEM file of the authority that NATS's certificate has to come from; default: the system's")
    nats_tls_cert: Path | None = Field(None, description="PEM file of our own certificate, where NATS asks for one")
    nats_tls_key: Path | None = Field(None, description="PEM file of its key")
    nats_tls_first: bool = Field(False, description="1 begins with TLS, before NATS says a word; NATS needs `handshake_first: true`")
    nats_monitor_url: str | None = Field(
        None, description="NATS's monitoring page, http://host:8222: `tocsin doctor` asks it whether NATS writes to the disk before it acknowledges"
    )
    source: str | None = Field(None, description="The source's name in subjects and events; default: the database's name")
    stream: str | None = Field(None, description="The JetStream stream; default TOCSIN_<SOURCE>")
    subject_prefix: str = Field("pg", description="The first token of every subject")
    channels: Names = Field((), description="Existing NOTIFY channels to carry, separated by commas")
    stream_max_age: Duration = Field(timedelta(days=7), description="How long the stream keeps events")
    stream_max_bytes: ByteSize = Field(ByteSize(8 << 30), description="How large the stream may grow")
    stream_replicas: int = Field(1, ge=1, le=5, description="JetStream replicas of the stream: 1, 3 or 5")
    doorbell: Literal["auto", "on", "off"] = Field("auto", description="auto rings unless prepared transactions are possible; off reads every 20 ms instead")
    max_event: ByteSize = Field(ByteSize(900 << 10), ge=16 << 10, description="The largest event, headers included; a larger one is sent with its key only")
    listener_host: str = Field("127.0.0.1", description="Address of the listener's health and metrics")
    listener_port: Port = Field(8070, description="Port of the listener's health and metrics")
    gateway_host: str = Field("127.0.0.1", description="Address of the gateway")
    gateway_port: Port = Field(8080, description="Port of the gateway")
    gateway_tls_cert: Path | None = Field(None, description="PEM file of the gateway's certificate and its chain, for HTTPS; read again when renewed")
    gateway_tls_key: Path | None = Field(None, description="PEM file of its key")
    gateway_drain: Duration = Field(timedelta(seconds=5), description="How long a gateway that stops takes at most to close its clients, in small groups")
    check_host: str = Field("127.0.0.1", description="Address of the checker")
    check_port: Port = Field(8090, description="Port of the checker")
    check_max_load: float = Field(
        0.05,
        gt=0,
        le=1,
        description="The share of one backend of the source that the checker may take, over 0 and at most 1; a twenty-fifth of it beside others' work",
    )
    check_max_rows: int | None = Field(None, ge=1, description="How many rows a second the checker may read at most; default: no limit")
    check_exact: bool = Field(False, description="1 compares bit for bit: 1.0 and 1.00 differ; otherwise equal is what SQL calls equal")
    embedded_nats_port: Port = Field(4222, description="Port of the NATS server that `tocsin up` starts")
    embedded_source_port: Port = Field(5433, description="Port of the source PostgreSQL that `tocsin up` starts")
    embedded_replica_port: Port = Field(5434, description="Port of the replica PostgreSQL that `tocsin up` starts")
    jwt_secret: SecretStr | None = Field(None, description="Secret of HS256 tokens")
    jwt_secret_file: Path | None = Field(None, description="File that holds TOCSIN_JWT_SECRET; the setting itself wins")
    database_url_file: Path | None = Field(None, description="File that holds TOCSIN_DATABASE_URL, password and all; the setting itself wins")
    replica_url_file: Path | None = Field(None, description="File that holds TOCSIN_REPLICA_URL; the setting itself wins")
    nats_url_file: Path | None = Field(None, description="File that holds TOCSIN_NATS_URL; the setting itself wins")
    token: SecretStr | None = Field(None, description="The JWT with which tail, why and validate come to the gateway and the checker; not for services")
    token_file: Path | None = Field(None, description="File that holds TOCSIN_TOKEN; the setting itself wins")
    jwks_url: str | None = Field(None, description="Where the keys of RS256 and ES256 tokens are")
    jwt_audience: str | None = Field(None, description="The audience that a token must name")
    jwt_issuer: str | None = Field(None, description="The issuer that a token must name")
    allowed_origins: Names = Field((), description="Origins whose pages may connect, separated by commas; the gateway's own is always allowed")
    trusted_proxies: Names = Field((), description="Addresses or networks of proxies whose X-Forwarded-For and -Proto are believed, separated by commas")
    limits: Names = Field((), description="Changes of the gateway's limits, such as subscriptions=256,connections_per_user=1000; docs/limits.md lists them")
    insecure: bool = Field(False, description="1 serves without tokens on an address other than loopback")
    otlp_url: str | None = Field(None, description="OpenTelemetry collector that takes traces (OTLP over HTTP), such as http://127.0.0.1:4318; default: none")
    trace_sample: float = Field(0.01, ge=0, le=1, description="Share of batches whose first event is traced; an application's own sampled trace always is")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="What is logged")
    log_format: Literal["auto", "json", "console"] = Field("auto", description="auto is console on a terminal, else json")

    @field_validator("subject_prefix")
    @classmethod
    def _one_plain_token(cls, value: str) -> str:
        if encode_token(value) != value or value.startswith("%"):
            raise ValueError("one token of letters, digits, '_' and '-' is allowed")
        Pattern(value)
        return value

    @field_validator("stream")
    @classmethod
    def _stream_name(cls, value: str | None) -> str | None:
        if value and not _STREAM.fullmatch(value):
            raise ValueError("a stream's name is at most 255 characters, without spaces, dots, '*', '>', '/' and '\\', such as TOCSIN_SHOP")
        return value

    @field_validator("jwt_secret")
    @classmethod
    def _some_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().strip():
            raise ValueError("it is empty, so that anybody could sign with it; unset it, or take one of 32 bytes or more, such as: openssl rand -hex 32")
        return value

    @field_validator("allowed_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(_ORIGIN.fullmatch(text) for text in value):
            raise ValueError("origins such as https://app.example.com or http://localhost:3000 are allowed, without a path, separated by commas")
        return value

    @field_validator("otlp_url", "nats_monitor_url", "jwks_url")
    @classmethod
    def _http_url(cls, value: str | None) -> str | None:
        if value and (urlsplit(value).scheme not in ("http", "https") or not urlsplit(value).netloc):
            raise ValueError("a URL that begins with http:// or https:// is allowed")
        return value

    @field_validator("stream_replicas")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value not in (1, 3, 5):
            raise ValueError("1, 3 or 5 is allowed")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            try:
                ip_network(text)
            except ValueError:
                raise ValueError("addresses and networks such as 10.0.0.5 and 10.1.0.0/16 are allowed, separated by commas") from None
        return value

    @field_validator("nats_url")
    @classmethod
    def _nats_urls(cls, value: str) -> str:
        schemes = {urlsplit(url.strip()).scheme for url in value.split(",")}
        if not schemes <= {"nats", "tls", "ws", "wss"}:
            raise ValueError("URLs that begin with nats://, tls://, ws:// or wss:// are allowed, separated by commas, such as nats://host:4222")
        return value

    @field_validator("database_url", "replica_url")
    @classmethod
    def _postgres_url(cls, value: str | None) -> str | None:
        if value is not None and urlsplit(value).scheme not in ("postgresql", "postgres"):
            raise ValueError("a URL that begins with postgresql:// is allowed, such as postgresql://user@host:5432/name")
        return value

    @property
    def source_name(self) -> str:
        """The source's name: as set, else the database's in the source URL."""
        if self.source:
            return self.source
        name = unquote(urlsplit(self.require_database_url()).path.lstrip("/"))
        if not name:
            raise OperatorError(
                "TOCSIN_DATABASE_URL names no database",
                "end it with the database's name, as in postgresql://user@host:5432/shop, or set TOCSIN_SOURCE",
                exit_code=2,
            )
        return name

    @property
    def stream_name(self) -> str:
        """The stream's name: as set, else TOCSIN_ and the source in capitals, with what NATS forbids there escaped."""
        return self.stream or f"TOCSIN_{encode_token(self.source_name).replace('%', '_').upper()}"

    @property
    def gateway_url(self) -> str:
        """The gateway as a program on this machine reaches it; with HTTPS its certificate has another name, as a rule."""
        return f"{'https' if self.gateway_tls_cert else 'http'}://{local_address(self.gateway_host, self.gateway_port)}"

    @property
    def listener_url(self) -> str:
        return f"http://{local_address(self.listener_host, self.listener_port)}"

    @property
    def check_url(self) -> str:
        return f"http://{local_address(self.check_host, self.check_port)}"

    @property
    def nats_servers(self) -> list[str]:
        return [url.strip() for url in self.nats_url.split(",") if url.strip()]

    @property
    def nats_login(self) -> NatsLogin:
        return NatsLogin(self.nats_creds, self.nats_nkey_seed, self.nats_tls_ca, self.nats_tls_cert, self.nats_tls_key, self.nats_tls_first)

    @property
    def bearer(self) -> str | None:
        """The token with which a verb comes to a service, as it is sent."""
        return self.token.get_secret_value() if self.token is not None else None

    def require_database_url(self) -> str:
        return _required(self.database_url, "TOCSIN_DATABASE_URL", "the source database")

    def require_replica_url(self) -> str:
        return _required(self.replica_url, "TOCSIN_REPLICA_URL", "the logical replica")


def local_address(host: str, port: int) -> str:
    """host:port as a client on this machine writes it; a server that listens everywhere is on loopback too."""
    reachable = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # compared, not bound
    return f"[{reachable}]:{port}" if ":" in reachable else f"{reachable}:{port}"


def _required(value: str | None, name: str, what: str) -> str:
    if value is None:
        raise OperatorError(
            f"{name} is not set: it says where {what} is", f"export {name}=postgresql://user@host:5432/name, or start everything with: tocsin up", exit_code=2
        )
    return value


def load_settings(**flags: Any) -> Settings:
    """Settings from the environment, `.env` and the flags that are not None, and secrets from the files that they name."""
    given: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
    try:
        settings = Settings(**given)
        secrets = _secrets(settings)
        return Settings(**{**given, **secrets}) if secrets else settings
    except ValidationError as invalid:
        lines = [_describe(error) for error in invalid.errors(include_url=False)]
        raise OperatorError(
            "\n".join(lines), "correct the setting and start again; `tocsin --help` and docs/settings.md list all of them", exit_code=2
        ) from None


def _secrets(settings: Settings) -> dict[str, str]:
    """What the files say, for each setting that is not set itself."""
    found = {}
    for name in SECRETS:
        path = getattr(settings, f"{name}_file")
        if path is None or name in settings.model_fields_set:
            continue
        try:
            found[name] = path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise OperatorError(f"TOCSIN_{name.upper()}_FILE={path}: {error}", "name a text file that this user may read", exit_code=2) from error
        if not found[name]:
            raise OperatorError(f"TOCSIN_{name.upper()}_FILE={path} is empty", f"write into it what TOCSIN_{name.upper()} would be", exit_code=2)
    return found


def child_environment(**settings: str) -> dict[str, str]:
    """The environment of a child process that is a Tocsin command: ours, with `settings` (fields by name) in place of what it says."""
    return {**os.environ, **{f"TOCSIN_{name.upper()}": value for name, value in settings.items()}}


def inherited_environment(*names: str) -> dict[str, str]:
    """Only these variables of ours, as far as they are set: for a child that must not see the rest."""
    return {name: os.environ[name] for name in names if name in os.environ}


def _describe(error: Any) -> str:
    name = "TOCSIN_" + "_".join(str(part) for part in error["loc"]).upper()
    field = Settings.model_fields.get(str(error["loc"][0]).lower())
    value = "(hidden)" if name.startswith(("TOCSIN_JWT_SECRET", "TOCSIN_TOKEN")) else _PASSWORD.sub(r"\1:***@", repr(error["input"]))
    reason = _SIZES if error["type"].startswith("byte_size") else error["msg"].removeprefix("Value error, ")
    what = f" ({field.description})" if field and field.description else ""
    return f"{name}={value} is not valid: {reason}{what}"
