"""Whatever strangers say or write: nothing of the trust zone raises anything but its own errors."""

from __future__ import annotations

import json
import random

from hypothesis import given
from hypothesis import strategies as st

from provider_kairos.clock import ManualClock
from provider_kairos.ids import PeerId
from provider_kairos.trustzone import keys
from provider_kairos.trustzone.challenge import TEXT, annotated
from provider_kairos.trustzone.engine import TrustEngine
from provider_kairos.trustzone.gate import PeerGate
from provider_kairos.trustzone.model import Admit, TrustRules, TrustView, read_keys, read_notes
from provider_kairos.trustzone.sign import sign, sign_native, verify, verify_native

PAIR = keys.generate()
PRIVATE = keys.load_private(PAIR.private)
PUBLIC = PRIVATE.public_key()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
PEERS = st.sampled_from([PeerId(name) for name in ("me", "a", "b", "c")])


@given(st.text(), st.binary(max_size=400))
def test_any_text_is_a_key_or_a_refusal(text, data):
    for candidate in (text, keys.pem_block("EC PUBLIC KEY", data)):
        for load in (keys.load_public, keys.load_private):
            try:
                load(candidate)
            except keys.KeyTextError as error:
                assert len(candidate) < 8 or candidate not in str(error)  # noqa: PT017 - either way is right


@given(st.integers(0, 487), st.integers(1, 255))
def test_a_damaged_key_is_refused_or_another_one(where, bits):
    raw = bytearray(PAIR.public.encode())
    raw[where % len(raw)] ^= bits
    try:
        found = keys.load_public(raw.decode("latin-1"))
    except keys.KeyTextError:
        return
    # a label, a line end, or an unused bit at the end: what was read is a key of its own right
    assert keys.load_public(keys.public_text(found)).public_numbers() == found.public_numbers()


@given(st.binary(max_size=200))
def test_signatures_hold_for_every_text_and_never_for_another(message):
    assert verify(PUBLIC, sign(PRIVATE, message), message)
    assert verify_native(PUBLIC, sign_native(PRIVATE, message), message)
    assert not verify(PUBLIC, sign(PRIVATE, message), message + b"\x00")


@given(st.text(), st.text())
def test_nonsense_never_verifies(signature, message):
    assert not verify(PUBLIC, signature, message.encode("utf-8", "replace"))
    assert not verify_native(PUBLIC, signature, message.encode("utf-8", "replace"))


@given(
    st.lists(
        st.tuples(PEERS, PEERS, st.sampled_from([TEXT, b"", b"x"]), st.none() | st.dictionaries(st.text(), JSON)),
        max_size=8,
    ),
    st.sampled_from(["sigs", "kairos-p2p", ""]),
    JSON,
)
def test_no_talk_breaks_the_guard_or_lets_anybody_in(talk, name, value):
    clock = ManualClock()
    engine = TrustEngine(PeerId("me"), TrustRules(), PeerGate(), PRIVATE, random.Random(1))
    engine.look(TrustView(keys={"ecdsa_1": PAIR.public}, room=frozenset({PeerId("a")})), clock.now())
    for author, via, text, notes in talk:
        engine.heard(author, via, text, {**(notes or {}), name: value}, clock.advance(1))
        assert not any(isinstance(effect, Admit) for effect in engine.tick(clock.now()))
    good = annotated(PRIVATE, PeerId("d"), clock.now(), inside=False, for_edgevpn=True)
    assert engine.heard(PeerId("d"), PeerId("d"), TEXT, json.loads(json.dumps(good)), clock.now()) == "accepted"


@given(st.dictionaries(st.text(), st.text()))
def test_any_records_can_be_read(records):
    assert all(isinstance(text, str) for text in read_keys(records).values())
    assert all(len(key) == 16 for key in read_notes(records).values())
