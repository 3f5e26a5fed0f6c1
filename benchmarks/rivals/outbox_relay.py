"""The relay of nats-outbox as its own command runs it, with the largest batches that it allows; in a virtual environment of its own.

python outbox_relay.py DATABASE_URL NATS_URL prepare COUNT   fills its outbox
python outbox_relay.py DATABASE_URL NATS_URL relay           drains it, for ever
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any


async def main(database_url: str, nats_url: str, what: str, count: int) -> None:
    import nats  # its own environment has these; ours does not
    from nats_outbox.core.models import Base  # type: ignore[import-not-found]
    from nats_outbox.publishers.nats_publisher import NatsPublisher  # type: ignore[import-not-found]
    from nats_outbox.relay.polling import PollingRelay  # type: ignore[import-not-found]
    from nats_outbox.settings import OutboxSettings  # type: ignore[import-not-found]
    from sqlalchemy import insert  # type: ignore[import-not-found]
    from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine  # type: ignore[import-not-found]

    url = database_url.replace("postgresql://", "postgresql+asyncpg://")
    engine = create_async_engine(url)
    if what == "prepare":
        from nats_outbox.core.models import OutboxEvent

        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
            note = "a note of some forty characters, or so"
            rows: list[dict[str, Any]] = [
                {
                    "subject": "rival.outbox",
                    "payload": {"id": n, "note": note},
                    "aggregate_id": str(n),
                    "aggregate_type": "t",
                }
                for n in range(count)
            ]
            await connection.execute(insert(OutboxEvent), rows)
        return
    client = await nats.connect(nats_url)
    settings = OutboxSettings(database_url=url, nats_url=nats_url, batch_size=500, polling_interval=0.1)
    await PollingRelay(async_sessionmaker(engine, expire_on_commit=False), NatsPublisher(client.jetstream()), settings).start()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]) if len(sys.argv) > 4 else 0))
