"""The framed header of our stream protocols: what is written is read, whatever else comes is a typed error."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from provider_kairos.services.greeting import (
    LONGEST,
    GreetingError,
    RefusedError,
    encode,
    expect_ok,
    parse,
    read,
    refusal,
    text_of,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(codec="utf-8"), max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
messages = st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=12), json_values, max_size=5)


class Wire:
    """Gives out ``data`` in pieces of the sizes in ``cuts``, at least a byte each, then the end."""

    def __init__(self, data, cuts):
        self.data = data
        self.cuts = list(cuts)

    async def read(self, limit):
        await trio.lowlevel.checkpoint()
        size = min(limit, self.cuts.pop(0) if self.cuts else limit)
        piece, self.data = self.data[:size], self.data[size:]
        return piece


@given(st.lists(messages, min_size=1, max_size=4), st.lists(st.integers(1, 40), max_size=30), st.binary(max_size=20))
def test_frames_survive_any_cutting_and_leave_the_payload_alone(sent, cuts, payload):
    async def main():
        wire = Wire(b"".join(map(encode, sent)) + payload, cuts)
        assert [await read(wire) for _ in sent] == sent
        assert wire.data == payload

    trio.run(main)


@given(st.binary(max_size=300), st.lists(st.integers(1, 40), max_size=30))
def test_anything_is_a_message_or_a_typed_error(data, cuts):
    async def main():
        try:
            message = await read(Wire(data, cuts))
        except GreetingError:
            return
        assert isinstance(message, dict)

    trio.run(main)


@given(st.binary(max_size=300))
def test_a_body_is_an_object_or_a_typed_error(body):
    with suppress(GreetingError):
        assert isinstance(parse(body), dict)


@given(st.text(max_size=40), st.text(max_size=5000))
def test_refusals_are_raised_with_their_words_fit_for_a_terminal(code, text):
    async def main():
        with pytest.raises(RefusedError) as caught:
            await expect_ok(Wire(refusal(code, text), ()))
        assert caught.value.code == code
        assert len(caught.value.message) <= 300
        assert caught.value.message == code or caught.value.message.isprintable()

    trio.run(main)


@given(messages, st.text(max_size=12))
def test_a_text_of_a_message_is_a_text(message, key):
    try:
        assert isinstance(text_of(message, key), str)
    except GreetingError:
        assert not isinstance(message.get(key), str)


def test_what_is_too_long_is_never_sent_nor_read():
    with pytest.raises(GreetingError):
        encode({"x": "y" * LONGEST})

    async def main():
        for length in (0, LONGEST + 1, 65535):
            with pytest.raises(GreetingError):
                await read(Wire(length.to_bytes(2, "big") + b"{}" * 40_000, ()))

    trio.run(main)


def test_deep_nesting_is_an_error_and_no_crash():
    with pytest.raises(GreetingError):
        parse(b"[" * 8000)
