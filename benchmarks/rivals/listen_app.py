"""The usual application: LISTEN in the web process, send_text to every client in a loop."""

from __future__ import annotations

import asyncio
import sys

import asyncpg
import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect


async def main(url: str, port: int) -> None:
    app = FastAPI()
    clients: set[WebSocket] = set()
    waiting: asyncio.Queue[str] = asyncio.Queue()

    @app.websocket("/ws")
    async def socket(client: WebSocket) -> None:
        await client.accept()
        clients.add(client)
        try:
            await client.receive_text()
        except WebSocketDisconnect:
            pass
        finally:
            clients.discard(client)

    async def fan_out() -> None:
        while True:
            text = await waiting.get()
            for client in list(clients):
                await client.send_text(text)

    connection = await asyncpg.connect(url)
    await connection.add_listener("rows", lambda *arguments: waiting.put_nowait(arguments[3]))
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", ws_per_message_deflate=False))
    async with asyncio.TaskGroup() as group:
        sending = group.create_task(fan_out())
        await server.serve()
        sending.cancel()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
