"""Many clients in one process that note when each event arrived: raw sockets, epoll; the first ten are looked at, the others only drained.

    python -m benchmarks.arrivals HOST PORT PATH CLIENTS COUNT KIND < hello messages, one a line

KIND is `websocket` or `sse`. Each event bears `"number":N`, N from 0 to COUNT - 1. Prints `ready` when every client is subscribed, and when
the first ten have all of the events, or none comes for 10 seconds, one line of JSON: for each of the ten a list of monotonic times by number
(null: did not come).
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import sys
import time

from benchmarks.sink import open_client

WATCHED = 10
NUMBER = re.compile(rb'"number": ?(\d+)[,}]')
LONGEST = 64


def open_stream(host: str, port: int, path: str) -> tuple[socket.socket, bytes]:
    """A client of server-sent events that has the response's head, and what followed it."""
    sock = socket.create_connection((host, port), timeout=30)
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nAccept: text/event-stream\r\n\r\n".encode())
    data = b""
    while b"\r\n\r\n" not in data:
        data += sock.recv(65536)
    assert b" 200 " in data.split(b"\r\n", 1)[0], data
    return sock, data.split(b"\r\n\r\n", 1)[1]


def main() -> None:
    host, port, path, clients, count, kind = sys.argv[1:7]
    hellos = [line.strip().encode() for line in sys.stdin if line.strip()]
    selector = selectors.DefaultSelector()
    times: list[list[float | None]] = [[None] * int(count) for _ in range(min(WATCHED, int(clients)))]
    tails = [b""] * len(times)
    for place in range(int(clients)):
        sock, _ = (
            open_client(host, int(port), path, hellos, 1, b'"position":' if hellos else b"") if kind == "websocket" else open_stream(host, int(port), path)
        )
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ, place)
    print("ready", flush=True)
    missing = len(times) * int(count)
    while missing and (ready := selector.select(10)):
        for entry, _ in ready:
            data = entry.fileobj.recv(1 << 18)  # type: ignore[union-attr]
            now = time.perf_counter()
            assert data, "the server closed a client"
            if entry.data >= len(times):
                continue
            data = tails[entry.data] + data
            end = 0
            for found in NUMBER.finditer(data):
                end, number = found.end(), int(found[1])
                if times[entry.data][number] is None:
                    times[entry.data][number] = now
                    missing -= 1
            tails[entry.data] = data[max(end, len(data) - LONGEST) :]
    print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main()
