"""What `tocsin up` prints once everything runs: where each part is, and what to try."""

from __future__ import annotations

from tocsin import postgres
from tocsin.settings import Settings
from tocsin.stack.plan import Plan
from tocsin.subject import encode_token


def banner(plan: Plan, *, demo: bool) -> str:
    """Addresses and commands, as text of several lines that fits 100 columns but for long URLs."""
    root = f"{plan.prefix}.{encode_token(plan.source_name)}"
    orders = f"{root}.change.public.orders.>" if demo else f"{root}.change.>"
    rows = (
        ("console", f"http://{plan.gateway_address}/", "subscribe in the browser"),
        ("WebSocket", f"ws://{plan.gateway_address}/ws", f"docs: http://{plan.gateway_address}/docs"),
        ("drift report", f"http://{plan.check_address}/", ""),
        ("source", postgres.without_password(plan.source_url), "" if plan.source else "yours"),
        ("replica", postgres.without_password(plan.replica_url), "" if plan.replica else "yours"),
        ("NATS", plan.nats_url.rpartition("@")[2] if "@" in plan.nats_url else plan.nats_url, f"stream {plan.stream}"),
        ("listener", f"http://{plan.listener_address}/readyz", ""),
    )
    port = plan.gateway_address.rpartition(":")[2]
    tries = [
        f"curl -N 'http://{plan.gateway_address}/sse?subject={orders}'",
        f"nats --server {plan.nats_url} sub '{plan.prefix}.>'",
        ("" if port == "8080" else f"TOCSIN_GATEWAY_PORT={port} ") + f"tocsin tail '{orders}'",
    ]
    if (plan.source and plan.source.port != _usual("source")) or (plan.replica and plan.replica.port != _usual("replica")):
        tries.append(f"export TOCSIN_DATABASE_URL={plan.source_url} TOCSIN_REPLICA_URL={plan.replica_url}")
    if demo:
        tries.append("tocsin psql -c \"UPDATE orders SET note = 'hello' WHERE id = (SELECT max(id) FROM orders)\"")
    tries.append("tocsin watched; tocsin drift; tocsin doctor")
    addresses = [f"  {name:<13}{address:<48}{note}".rstrip() for name, address, note in rows]
    commands = [f"    {command}" for command in tries]
    return "\n".join(["", *addresses, "", "  Try, each in a terminal of its own:", *commands, "", "  Ctrl-C stops everything; the data stay.", ""])


def _usual(part: str) -> int:
    """The port at which the verbs look for the embedded `part` by themselves."""
    return int(Settings.model_fields[f"embedded_{part}_port"].default)
