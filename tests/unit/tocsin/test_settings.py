"""Settings: from where they come, and what an invalid one says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tocsin.errors import OperatorError
from tocsin.settings import Settings, child_environment, inherited_environment, load_settings


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("text", ["*", "proxy.example", "10.0.0.1/8", "10.0.0.5, *"])
def test_only_addresses_and_networks_are_trusted_proxies(text: str) -> None:
    with pytest.raises(OperatorError) as problem:
        load_settings(trusted_proxies=text)
    assert "TOCSIN_TRUSTED_PROXIES" in str(problem.value)
    assert load_settings(trusted_proxies="10.0.0.5, fd00::/8").trusted_proxies == ("10.0.0.5", "fd00::/8")


def test_flags_win_over_the_environment_and_the_environment_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("TOCSIN_GATEWAY_PORT=1\nTOCSIN_CHECK_PORT=1\nTOCSIN_LISTENER_PORT=1\n")
    monkeypatch.setenv("TOCSIN_GATEWAY_PORT", "2")
    monkeypatch.setenv("TOCSIN_CHECK_PORT", "2")
    settings = load_settings(gateway_port=3, source=None)
    assert (settings.gateway_port, settings.check_port, settings.listener_port) == (3, 2, 1)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("TOCSIN_GATEWAY_PORT", "70000", "65535"),
        ("TOCSIN_GATEWAY_PORT", "http", "integer"),
        ("TOCSIN_STREAM_REPLICAS", "2", "1, 3 or 5"),
        ("TOCSIN_STREAM_MAX_AGE", "a week", "ms, s, m, h, d, w"),
        ("TOCSIN_SUBJECT_PREFIX", "pg.x", "one token"),
        ("TOCSIN_DATABASE_URL", "mysql://root@localhost/shop", "postgresql://"),
        ("TOCSIN_NATS_URL", "http://localhost:4222", "nats://"),
        ("TOCSIN_DOORBELL", "loud", "'auto', 'on' or 'off'"),
        ("TOCSIN_MAX_EVENT", "large", "900KiB"),
        ("TOCSIN_MAX_EVENT", "10", "16384"),
        ("TOCSIN_STREAM", "a.b", "without spaces, dots"),
        ("TOCSIN_OTLP_URL", "collector:4318", "http://"),
        ("TOCSIN_ALLOWED_ORIGINS", "*", "https://app.example.com"),
        ("TOCSIN_ALLOWED_ORIGINS", "https://a.example,app.example.com", "without a path"),
    ],
)
def test_an_invalid_setting_names_itself_its_value_and_what_is_allowed(name: str, value: str, allowed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(OperatorError) as caught:
        load_settings()
    message = str(caught.value)
    assert name in message
    assert value in message
    assert allowed in message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_secret_is_refused_since_anybody_could_sign_with_it(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a compose file makes of a variable that is not set."""
    monkeypatch.setenv("TOCSIN_JWT_SECRET", value)
    with pytest.raises(OperatorError, match=r"TOCSIN_JWT_SECRET=\(hidden\) is not valid: it is empty"):
        load_settings()


def test_a_secret_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOCSIN_JWT_SECRET", "hunter2")
    assert "hunter2" not in repr(load_settings())


@pytest.mark.parametrize(("name", "value"), [("TOCSIN_DATABASE_URL", "mysql://me:hunter2@db/shop"), ("TOCSIN_NATS_URL", "http://me:hunter2@nats:4222")])
def test_a_password_in_a_wrong_url_is_not_shown(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(OperatorError) as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)
    assert "//me:***@" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "source", "stream"),
    [
        ("postgresql://u@h:5432/shop", "shop", "TOCSIN_SHOP"),
        ("postgresql://u@h/My%20Shop", "My Shop", "TOCSIN_MY_20SHOP"),
        ("postgresql://u:p%40ss@h/a.b?sslmode=require", "a.b", "TOCSIN_A_2EB"),
    ],
)
def test_the_source_and_its_stream_are_named_after_the_database(url: str, source: str, stream: str) -> None:
    settings = load_settings(database_url=url)
    assert (settings.source_name, settings.stream_name) == (source, stream)


def test_a_url_without_a_database_says_how_to_end_it() -> None:
    with pytest.raises(OperatorError, match="names no database"):
        _ = load_settings(database_url="postgresql://u@h:5432").source_name


def test_a_missing_url_names_its_setting() -> None:
    with pytest.raises(OperatorError, match="TOCSIN_REPLICA_URL is not set"):
        load_settings().require_replica_url()


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOCSIN_CHANNELS", "mail, jobs,")
    assert load_settings(nats_url="nats://a:4222, nats://b:4222").nats_servers == ["nats://a:4222", "nats://b:4222"]
    assert load_settings().channels == ("mail", "jobs")


def test_a_child_gets_what_we_say_and_a_server_only_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOCSIN_SOURCE", "inherited")
    monkeypatch.setenv("TOCSIN_GATEWAY_PORT", "1")
    child = child_environment(gateway_port="2")
    assert (child["TOCSIN_SOURCE"], child["TOCSIN_GATEWAY_PORT"]) == ("inherited", "2")
    assert inherited_environment("TOCSIN_SOURCE", "NO_SUCH_VARIABLE") == {"TOCSIN_SOURCE": "inherited"}


def test_every_setting_says_what_it_is_for() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_a_secret_comes_from_its_file_and_the_setting_itself_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret, url = tmp_path / "secret", tmp_path / "url"
    secret.write_text("from the file\n")
    url.write_text("postgresql://app:hidden@db/shop\n")
    monkeypatch.setenv("TOCSIN_JWT_SECRET_FILE", str(secret))
    monkeypatch.setenv("TOCSIN_DATABASE_URL_FILE", str(url))
    monkeypatch.setenv("TOCSIN_TOKEN_FILE", str(secret))
    settings = load_settings()
    assert (settings.bearer, load_settings(token="of the flag").bearer) == ("from the file", "of the flag")
    assert settings.jwt_secret is not None
    assert settings.jwt_secret.get_secret_value() == "from the file"
    assert settings.database_url == "postgresql://app:hidden@db/shop"
    assert load_settings(database_url="postgresql://db/other").database_url == "postgresql://db/other"


@pytest.mark.parametrize("content", [None, "  \n"])
def test_a_secret_file_that_is_missing_or_empty_ends_the_start(content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty secret must never mean that no token is asked for."""
    path = tmp_path / "secret"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("TOCSIN_JWT_SECRET_FILE", str(path))
    with pytest.raises(OperatorError, match="TOCSIN_JWT_SECRET_FILE") as refused:
        load_settings()
    assert refused.value.exit_code == 2
