"""What `tocsin up` prints once everything runs: where each part is, and what to try."""

from __future__ import annotations

import re

from tocsin import postgres
from tocsin.settings import Settings
from tocsin.stack.plan import Plan
from tocsin.subject import encode_token
from tocsin.subscription import socket_url


def banner(plan: Plan, *, demo: bool) -> str:
    """Addresses and commands, as text of several lines that fits 100 columns but for long URLs."""
    root = f"{plan.prefix}.{encode_token(plan.source_name)}"
    orders = f"{root}.change.public.orders.>" if demo else f"{root}.change.>"
    rows = (
        ("console", f"{plan.gateway_url}/", "subscribe in the browser"),
        ("WebSocket", socket_url(plan.gateway_url), f"docs: {plan.gateway_url}/docs"),
        ("drift report", f"{plan.check_url}/", ""),
        ("source", postgres.without_password(plan.source_url), "" if plan.source else "yours"),
        ("replica", postgres.without_password(plan.replica_url), "" if plan.replica else "yours"),
        ("NATS", _without_login(plan.nats_url), f"stream {plan.stream}" if plan.nats else f"yours; stream {plan.stream}"),
        ("listener", f"{plan.listener_url}/readyz", ""),
    )
    bearer = ' -H "Authorization: Bearer $TOCSIN_TOKEN"' if plan.needs_token else ""
    tries = [
        *(["export TOCSIN_TOKEN=...    # a JWT that allows the subject: docs/security.md"] if plan.needs_token else []),
        f"curl -N{bearer} '{plan.gateway_url}/sse?subject={orders}'",
        f"nats --server {_without_login(plan.nats_url)} sub '{plan.prefix}.>'",
        f"tocsin tail '{orders}'",
    ]
    if unusual := " ".join(f"{part.setting}={part.port}" for part in plan.listening if part.port != _usual(part.setting)):
        tries.insert(0, f"export {unusual}")
    if demo:
        tries.append("tocsin psql -c \"UPDATE orders SET note = 'hello' WHERE id = (SELECT max(id) FROM orders)\"")
    tries.append("tocsin watched; tocsin drift; tocsin doctor")
    addresses = [f"  {name:<13}{address:<48}{note}".rstrip() for name, address, note in rows]
    commands = [f"    {command}" for command in tries]
    return "\n".join(["", *addresses, "", "  Try, each in a terminal of its own:", *commands, "", "  Ctrl-C stops everything; the data stay.", ""])


def _usual(setting: str) -> int:
    """The port at which the verbs look for a part by themselves."""
    return int(Settings.model_fields[setting.removeprefix("TOCSIN_").lower()].default)


def _without_login(nats_url: str) -> str:
    """The servers as they may be shown; user and password are what the setting says."""
    return ",".join(re.sub("//[^/]*@", "//", url) for url in nats_url.split(","))
