"""Frames as the protocol has them, and which subjects are not sent at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tocsin_listener import wire
from tocsin_listener.message import Message


def message(subject: str = "pg.shop.change.public.t.insert", body: bytes = b"{}") -> Message:
    return Message(7, False, subject, body, "Nats-Msg-Id: e-i-7\r\nTocsin-Batch: 7;0\r\n", 0.0, 0.0)


def test_a_frame_is_one_hpub_whose_sizes_count_bytes() -> None:
    body = "ä€".encode()
    head = b"NATS/1.0\r\nNats-Msg-Id: e-i-7\r\nTocsin-Batch: 7;0\r\nX: 1\r\n\r\n"
    assert (
        wire.frame(message(body=body), "X: 1\r\n", "_INBOX.a")
        == b"HPUB pg.shop.change.public.t.insert _INBOX.a %d %d\r\n"
        % (
            len(head),
            len(head) + len(body),
        )
        + head
        + body
        + b"\r\n"
    )
    assert wire.frame(message(body=body)).startswith(b"HPUB pg.shop.change.public.t.insert 5")


@given(st.binary(max_size=300))
def test_whatever_the_body_its_size_is_told_and_it_ends_the_frame(body: bytes) -> None:
    framed = wire.frame(message(body=body))
    line, rest = framed.split(b"\r\n", 1)
    headers, total = map(int, line.split()[-2:])
    assert rest[headers:total] == body
    assert rest[total:] == b"\r\n"
    assert total < wire.size(message(body=body)), "the bound that decides on refusal must not be too low"


@pytest.mark.parametrize("subject", ["a..b", ".a", "a.", "a b", "a.*", "a.>", "a\r\nPUB x 0", "a\x00", "", "a." + "x" * 5000])
def test_a_subject_on_which_the_server_would_drop_the_connection_or_which_it_would_swallow_is_unfit(subject: str) -> None:
    assert wire.unfit(subject)


@pytest.mark.parametrize("subject", ["pg.shop.change.public.t.insert", "pg.shop.event.%C3%A4", "_tocsin.canary.shop", "pg.shop.change.a.b.c." + "x" * 128])
def test_a_subject_of_ours_is_fit(subject: str) -> None:
    assert wire.unfit(subject) is None
