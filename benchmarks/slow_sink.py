"""WebSocket clients that take their bytes at a bounded rate, in a process of their own.

    python -m benchmarks.slow_sink HOST PORT PATH CLIENTS BYTES_A_SECOND HELLO

The kernel's buffer is small, or it would take what is sent in their place.
Prints `ready` when every client is subscribed; when its standard input ends, one line of JSON: the bytes that each client took, and of how many
turns it found nothing to take.
"""

from __future__ import annotations

import contextlib
import json
import select
import sys
import time

from benchmarks.sink import open_client

TURN_SECONDS = 0.02
BUFFER = 32 << 10


def main() -> None:
    host, port, path, clients, rate, hello = sys.argv[1:7]
    share = max(1, int(float(rate) * TURN_SECONDS))
    sockets = []
    for _ in range(int(clients)):
        sock, _rest = open_client(host, int(port), path, [hello.encode()], 1, b'"subscribed"', buffer=max(BUFFER, 2 * share))
        sock.setblocking(False)
        sockets.append(sock)
    print("ready", flush=True)
    taken, empty = [0] * len(sockets), [0] * len(sockets)
    turns, due = 0, time.perf_counter()
    while not select.select([sys.stdin], [], [], max(0.0, due - time.perf_counter()))[0]:
        turns, due = turns + 1, due + TURN_SECONDS
        for place, sock in enumerate(sockets):
            data = b""
            with contextlib.suppress(BlockingIOError):
                data = sock.recv(share)
                assert data, "the server closed a slow client"
            taken[place] += len(data)
            empty[place] += not data
    print(json.dumps({"taken": taken, "empty": empty, "turns": turns}), flush=True)


if __name__ == "__main__":
    main()
