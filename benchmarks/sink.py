"""Many WebSocket clients in one process that only count: raw sockets, epoll, and a marker counted in the bytes.

    python -m benchmarks.sink HOST PORT PATH CLIENTS MARKER EXPECTED_PER_CLIENT < hello messages, one a line

In a hello, CLIENT stands for the client's number, from 0 on.
Prints `ready` when every client has sent its hello and got its `READY` bytes, and at the end one line of JSON:
`{"seconds": from the first marker to the last one, "count": …, "slowest": …}`.
"""

from __future__ import annotations

import base64
import json
import os
import selectors
import socket
import struct
import sys
import time


def masked(text: bytes, opcode: int) -> bytes:
    """One client frame with an all-zero mask."""
    length = len(text)
    head = struct.pack("!BB", 0x80 | opcode, 0x80 | length) if length < 126 else struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, length)
    return head + b"\0\0\0\0" + text


def open_client(host: str, port: int, path: str, hellos: list[bytes], opcode: int, ready: bytes, *, buffer: int | None = None) -> tuple[socket.socket, bytes]:
    """A subscribed client, and what it received after the ready bytes. The kernel takes at most about `buffer` bytes in its place."""
    sock = socket.socket()
    if buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.settimeout(30)
    sock.connect((host, port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    key = base64.b64encode(os.urandom(16)).decode()
    lines = (
        f"GET {path} HTTP/1.1",
        f"Host: {host}:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
    )
    request = "\r\n".join((*lines, "", ""))
    sock.sendall(request.encode())
    data = b""
    while b"\r\n\r\n" not in data:
        data += sock.recv(65536)
    assert b" 101 " in data.split(b"\r\n", 1)[0], data
    data = data.split(b"\r\n\r\n", 1)[1]
    for hello in hellos:
        sock.sendall(masked(hello, opcode))
    while ready not in data:
        more = sock.recv(65536)
        assert more, data
        data += more
    return sock, data.split(ready, 1)[1] if ready else data


def main() -> None:
    host, port, path, clients, marker, expected, kind, ready = sys.argv[1:9]
    hellos = [line.rstrip("\n").encode().decode("unicode_escape").encode() for line in sys.stdin if line.strip()]
    opcode = 2 if kind == "binary" else 1
    needle = marker.encode()
    selector = selectors.DefaultSelector()
    counts: dict[int, int] = {}
    tails: dict[int, bytes] = {}
    for number in range(int(clients)):
        own = [hello.replace(b"CLIENT", str(number).encode()) for hello in hellos]
        sock, rest = open_client(host, int(port), path, own, opcode, ready.encode())
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ, sock)
        counts[sock.fileno()] = rest.count(needle)
        tails[sock.fileno()] = rest[-(len(needle) - 1) :]
    print("ready", flush=True)
    total, goal = 0, int(expected) * int(clients)
    first = last = 0.0
    keep = len(needle) - 1
    while total < goal:
        events = selector.select(30)
        if not events:
            break
        for entry, _ in events:
            client = entry.fileobj
            assert isinstance(client, socket.socket)
            try:
                data = client.recv(1 << 18)
            except BlockingIOError:
                continue
            if not data:
                selector.unregister(client)
                continue
            data = tails[entry.fd] + data
            found = data.count(needle)
            tails[entry.fd] = data[-keep:]
            if found:
                last = time.perf_counter()
                first = first or last
                counts[entry.fd] += found
                total += found
    print(json.dumps({"seconds": last - first, "count": total, "slowest": min(counts.values())}), flush=True)


if __name__ == "__main__":
    main()
