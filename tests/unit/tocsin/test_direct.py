"""Messages handed over as they are parsed: the same, in the same order, however the wire cuts them."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from tocsin.direct import DirectClient, fields, status

Taken = tuple[bytes, bytes, bytes, bytes]

words = st.binary(min_size=1, max_size=8).map(lambda raw: raw.hex().encode())
bodies = st.one_of(st.binary(max_size=40), st.sampled_from([b"", b"\r\n", b"HMSG a 1 2 2\r\n", b"PING\r\n"]))
messages = st.tuples(words, st.one_of(st.just(b""), words), bodies, st.lists(st.tuples(words, words), max_size=3), st.sampled_from([1, 2, 7]))


def wire(subject: bytes, reply: bytes, body: bytes, headers: list[tuple[bytes, bytes]], sid: int) -> tuple[bytes, bytes]:
    """(the headers' bytes, the whole message as the server writes it)"""
    head = b"NATS/1.0\r\n" + b"".join(b"%b: %b\r\n" % pair for pair in headers) + b"\r\n"
    line = b"HMSG %b %d %b%b%d %d\r\n" % (subject, sid, reply, b" " if reply else b"", len(head), len(head) + len(body))
    return head, line + head + body + b"\r\n"


@given(st.lists(st.one_of(messages, st.sampled_from([b"+OK\r\n", b"MSG other 7 2\r\nhi\r\n", b"MSG plain 1 2\r\nhi\r\n"])), max_size=8), st.data())
def test_every_message_is_handed_over_once_and_in_order_however_the_wire_cuts_it(sent: list[object], data: st.DataObject) -> None:
    stream, expected = b"", []
    for one in sent:
        if isinstance(one, bytes):
            stream += one
            expected += [(b"plain", b"", b"hi", b"")] if b"plain" in one else []
        else:
            assert isinstance(one, tuple)
            head, whole = wire(*one)
            stream += whole
            expected += [(one[0], one[1], one[2], head)] if one[4] in (1, 2) else []
    at_random = st.lists(st.integers(0, len(stream)), max_size=6).map(sorted)
    cuts = data.draw(st.one_of(at_random, st.just(list(range(1, len(stream))))))
    taken: list[Taken] = []

    async def feed() -> None:
        client = DirectClient()
        # As `listen` does once the server has the subscription.
        client._handlers.update({sid: lambda *message: taken.append(message) for sid in (1, 2)})
        for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            await client._ps.parse(stream[begin:end])

    asyncio.run(feed())
    assert taken == expected


@given(st.dictionaries(words, words))
def test_fields_are_what_was_written(headers: dict[bytes, bytes]) -> None:
    assert fields(wire(b"s", b"", b"", list(headers.items()), 1)[0]) == headers


def test_the_status_of_a_message_of_the_servers_own() -> None:
    assert status(b"NATS/1.0 409 Consumer Deleted\r\n\r\n") == ("409", "Consumer Deleted")
    assert status(b"NATS/1.0 404\r\n\r\n") == ("404", "")
    assert status(b"NATS/1.0\r\nTocsin-Epoch: 404\r\n\r\n") == ("", "")
    assert fields(b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 12\r\n\r\n") == {b"Nats-Pending-Messages": b"12"}
