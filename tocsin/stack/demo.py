"""The demo application: a small shop that places, advances, cancels and forgets orders, a few a second, at times many."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import asyncpg
import structlog

from tocsin import postgres
from tocsin.errors import Unavailable
from tocsin.retry import forever
from tocsin.sql import load_queries

TABLES: Final = ("public.customers", "public.orders", "public.order_items")
ROUTES: Final = {"public.orders": ("customer_id",)}
"""The columns whose values end a table's subjects."""
KEPT_ORDERS: Final = 2000
BURST: Final = 60

_SQL: Final = load_queries("tocsin.stack", "shop.sql")
_PRODUCTS: Final = (("bell", "39.00"), ("rope, 5 m", "7.50"), ("clapper", "18.25"), ("bronze polish", "6.80"), ("ear plugs", "2.99"))
_dice: Final = random.SystemRandom()
_CITIES: Final = ("Lisbon", "Osaka", "Lagos", "Tromsø", "Lyon", None)

log = structlog.get_logger("tocsin.demo")


async def create_tables(connection: asyncpg.Connection) -> None:
    """The shop's tables and its customers; again and again without harm."""
    async with connection.transaction():
        await connection.execute(_SQL["create_tables"])
        await connection.execute(_SQL["fill_customers"])


@dataclass(frozen=True, slots=True)
class Act:
    """Something that the shop does, `weight` times as often as something of weight 1."""

    weight: int
    run: Callable[[asyncpg.Connection], Awaitable[object]]


async def place_order(connection: asyncpg.Connection) -> None:
    """An order with one to three lines, and its total: an INSERT of each, then an UPDATE, in one transaction."""
    chosen = _dice.sample(_PRODUCTS, _dice.randint(1, 3))
    lines = list(range(1, len(chosen) + 1))
    products, prices = [name for name, _ in chosen], [price for _, price in chosen]
    quantities = [_dice.randint(1, 4) for _ in chosen]
    note = _dice.choice((None, "ring twice", "leave it with the neighbour", "für die Glocke"))
    async with connection.transaction():
        number = await connection.fetchval(_SQL["place_order"], note, _dice.choice(("web", "app", "shop")), lines, products, quantities, prices)
        await connection.execute(_SQL["add_up"], number)


ACTS: Final = (
    Act(10, place_order),
    Act(14, lambda c: c.execute(_SQL["advance_order"])),
    Act(2, lambda c: c.execute(_SQL["cancel_order"])),
    Act(1, lambda c: c.execute(_SQL["move_customer"], _dice.choice(_CITIES))),
    Act(1, lambda c: c.execute(_SQL["forget_old_orders"], KEPT_ORDERS)),
)


async def trade(url: str, stop: asyncio.Event, *, pause: float = 0.3, burst_every: float = 20.0) -> None:
    """Write until `stop`; `pause` and `burst_every` are seconds on average. Waits for a database that is away, and goes on."""
    while not stop.is_set():
        async for attempt in forever(Unavailable, on_retry=lambda _n, error, _s: log.info("the shop waits", reason=str(error))):
            with attempt:
                connection = await postgres.connect(url, setting="TOCSIN_DATABASE_URL", application="tocsin demo shop")
        try:
            await create_tables(connection)
            await _trade_on(connection, stop, pause, burst_every)
        except postgres.TRANSIENT as error:
            log.info("the shop lost its database", reason=str(error) or type(error).__name__)
        finally:
            await postgres.close(connection)


async def _trade_on(connection: asyncpg.Connection, stop: asyncio.Event, pause: float, burst_every: float) -> None:
    weights = [act.weight for act in ACTS]
    while not stop.is_set():
        if _dice.random() < pause / burst_every:
            await connection.execute(_SQL["burst"], BURST)
        else:
            await _dice.choices(ACTS, weights)[0].run(connection)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_dice.expovariate(1 / pause)):
                await stop.wait()
