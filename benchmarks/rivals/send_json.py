"""The gateway that most people would write: a NATS subscription, and send_json to every client in a loop."""

from __future__ import annotations

import asyncio
import sys

import msgspec
import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from nats.aio.client import Client


async def main(nats_url: str, port: int) -> None:
    app = FastAPI()
    clients: set[WebSocket] = set()

    @app.websocket("/ws")
    async def socket(client: WebSocket) -> None:
        await client.accept()
        await client.receive_text()
        clients.add(client)
        await client.send_text('{"op":"ready"}')
        try:
            await client.receive_text()
        except WebSocketDisconnect:
            pass
        finally:
            clients.discard(client)

    connection = Client()
    await connection.connect(nats_url)
    subscription = await connection.subscribe("pg.shop.change.>")

    async def fan_out() -> None:
        async for message in subscription.messages:
            event = msgspec.json.decode(message.data)
            for client in list(clients):
                await client.send_json({"op": "event", "subject": message.subject, "event": event})

    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", ws_per_message_deflate=False))
    async with asyncio.TaskGroup() as group:
        sending = group.create_task(fan_out())
        await server.serve()
        sending.cancel()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
