"""The guard of one node: whom it asks, whom it lets in, whom it takes off."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from provider_kairos.clock import ManualClock
from provider_kairos.ids import PeerId
from provider_kairos.trustzone import engine as module
from provider_kairos.trustzone import keys, limits
from provider_kairos.trustzone.challenge import FRESH, TEXT, annotated
from provider_kairos.trustzone.engine import TrustEngine
from provider_kairos.trustzone.gate import PeerGate
from provider_kairos.trustzone.model import (
    Admit,
    Expel,
    NoKeyToAskWith,
    NotAdmitted,
    NoTrustedKey,
    Say,
    TrustRules,
    TrustView,
    note_text,
    read_keys,
    read_notes,
)

ME, A, B, C, X = (PeerId(name) for name in ("me", "a", "b", "c", "x"))
PAIR, OTHER = keys.generate(), keys.generate()
PRIVATE, OTHER_PRIVATE = keys.load_private(PAIR.private), keys.load_private(OTHER.private)
PRINT, OTHER_PRINT = keys.fingerprint(PRIVATE.public_key()), keys.fingerprint(OTHER_PRIVATE.public_key())


class Guard:
    """An engine with a clock; what it does in passing time is collected."""

    def __init__(self, private=PRIVATE, view=None, **rules):
        self.clock = ManualClock()
        self.gate = PeerGate()
        self.engine = TrustEngine(ME, TrustRules(**rules), self.gate, private, random.Random(1))
        self.view = view or TrustView(keys={"ecdsa_1": PAIR.public})
        self.engine.look(self.view, self.clock.now())

    def look(self, **changes):
        self.view = replace(self.view, **{name: _frozen(value) for name, value in changes.items()})
        self.engine.look(self.view, self.clock.now())
        return self

    def run(self, seconds):
        """Effects of the next seconds, each with when it came."""
        found = []
        ends = self.clock.now().mono + seconds
        start = self.clock.now().mono
        while (due := max(self.engine.next_wakeup(), self.clock.now().mono)) <= ends:
            self.clock.advance(due - self.clock.now().mono)
            effects = self.engine.tick(self.clock.now())
            assert effects or self.engine.next_wakeup() > self.clock.now().mono, "woken for nothing"
            found += [(self.clock.now().mono - start, effect) for effect in effects]
            self.engine.look(self.view, self.clock.now())
        self.clock.advance(ends - self.clock.now().mono)
        return found

    def heard(self, author, private=PRIVATE, *, via=None, bound=True, inside=False, plain=True, notes=None, text=TEXT):
        if notes is None:
            notes = annotated(private, author, self.clock.now(), inside=inside, for_edgevpn=plain)
            if not bound:
                del notes["kairos-p2p"]
        return self.engine.heard(author, via or author, text, notes, self.clock.now())

    def admitted(self, seconds=3):
        return {effect.peer: effect.key for _, effect in self.run(seconds) if isinstance(effect, Admit)}


def _frozen(value):
    return frozenset(value) if isinstance(value, set) else value


def said(effects):
    return [set(effect.annotations) for _, effect in effects if isinstance(effect, Say)]


# --- asking ----------------------------------------------------------------------------------------------------------


def test_nobody_is_asked_while_nobody_is_there():
    assert Guard().run(1000) == []


def test_it_asks_at_once_then_less_and_less_until_it_is_let_in():
    guard = Guard(interval=20).look(room={A})
    moments = [at for at, _ in guard.run(120)]
    gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
    assert moments[0] < 1
    assert all(0.74 * nominal <= gap <= 1.26 * nominal for gap, nominal in zip(gaps, [5, 10, 20, 20], strict=False))
    guard.look(zone={ME, A})
    assert guard.run(1000) == []


def test_edgevpn_is_asked_too_unless_there_is_none():
    assert said(Guard().look(room={A}).run(1)) == [{"kairos-p2p", "sigs"}]
    assert said(Guard(strict=True).look(room={A}).run(1)) == [{"kairos-p2p"}]


def test_a_newcomer_is_asked_soon():
    guard = Guard(interval=1000).look(room={A})
    guard.run(500)
    guard.look(room={A, B})
    assert [at < 1 for at, _ in guard.run(2)] == [True]


def test_a_trusted_node_asks_those_that_it_does_not_trust_with_nothing_that_others_could_use():
    guard = Guard().look(zone={ME, A}, room={A, B})
    effects = guard.run(1)
    assert said(effects) == [{"kairos-p2p"}]
    assert effects[0][1].annotations["kairos-p2p"]["inside"] is True


def test_newcomers_in_a_row_do_not_make_it_talk_all_the_time():
    guard = Guard().look(zone={ME})
    room, effects = set(), []
    for number in range(100):
        room.add(PeerId(f"new{number}"))
        effects += guard.look(room=set(room)).run(0.1)
    assert len(effects) <= 3


def test_without_a_key_it_only_lets_others_in():
    guard = Guard(private=None).look(room={A})
    assert guard.run(100) == []
    assert guard.heard(A) == "accepted"
    assert guard.admitted() == {A: PRINT}


# --- being asked -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [True, False])
def test_who_shows_a_trusted_key_is_let_in_with_a_note_of_it(bound):
    guard = Guard().look(keys={"ecdsa_1": PAIR.public, "ecdsa_2": OTHER.public}, zone={ME}, room={A})
    assert guard.heard(A, OTHER_PRIVATE, bound=bound) == "accepted"
    assert guard.heard(A, OTHER_PRIVATE, bound=bound) == "needless"
    assert guard.admitted() == {A: OTHER_PRINT}


def test_the_author_is_let_in_and_not_who_passed_it_on():
    guard = Guard()
    guard.heard(A, via=X, bound=False)
    assert guard.admitted() == {A: PRINT}


def test_who_was_let_in_by_somebody_else_meanwhile_is_not_written_again():
    guard = Guard().look(room={A, B, C})
    guard.heard(A)
    guard.look(zone={A})
    assert guard.admitted() == {}


def test_another_key_opens_nothing():
    guard = Guard()
    assert guard.heard(X, OTHER_PRIVATE) == "refused"
    assert guard.admitted() == {}


def test_a_challenge_that_is_said_again_by_somebody_else_is_refused():
    guard = Guard()
    notes = annotated(PRIVATE, A, guard.clock.now(), inside=False, for_edgevpn=True)
    assert guard.heard(A, notes=notes) == "accepted"
    assert guard.heard(X, notes=notes) == "refused"  # whole: the bound signature is not X's
    guard.clock.advance(10)
    assert guard.heard(X, notes={"sigs": notes["sigs"]}) == "replayed"
    assert set(guard.admitted()) == {A}


def test_it_is_also_refused_when_the_first_one_could_not_be_judged_yet():
    guard = Guard(view=TrustView())
    notes = annotated(PRIVATE, A, guard.clock.now(), inside=False, for_edgevpn=True)
    assert guard.heard(A, notes={"sigs": notes["sigs"]}) == "without_keys"
    guard.look(keys={"ecdsa_1": PAIR.public})
    assert guard.heard(X, notes={"sigs": notes["sigs"]}) == "replayed"


def test_whoever_is_quicker_with_a_stolen_signature_does_not_keep_out_its_owner():
    guard = Guard()
    notes = annotated(PRIVATE, A, guard.clock.now(), inside=False, for_edgevpn=True)
    guard.heard(X, notes={"sigs": notes["sigs"]})
    assert guard.heard(A, notes=notes) == "accepted"


def test_edgevpns_own_challenge_can_be_stolen_and_strict_refuses_it():
    stolen = {"sigs": annotated(PRIVATE, A, ManualClock().now(), inside=False, for_edgevpn=True)["sigs"]}
    assert Guard().heard(X, notes=stolen) == "accepted"
    strict = Guard(strict=True)
    assert strict.heard(X, notes=stolen) == "unbound"
    assert strict.heard(A) == "accepted"


@pytest.mark.parametrize("age", [FRESH + 1, -FRESH - 1])
def test_an_old_challenge_is_worth_nothing(age):
    guard = Guard()
    notes = annotated(PRIVATE, A, guard.clock.now(), inside=False, for_edgevpn=True)
    guard.clock.step_wall(age)
    assert guard.heard(A, notes=notes) == "stale"


def test_nonsense_and_our_own_words_are_counted():
    guard = Guard()
    assert guard.heard(A, text=b"hello") == "malformed"
    assert guard.heard(ME) == "own"
    assert guard.engine.counters == {"heard_malformed": 1, "heard_own": 1}


def test_keys_that_cannot_be_read_are_counted_once_and_left_out():
    guard = Guard().look(keys={"ecdsa_0": "nonsense", "ecdsa_1": PAIR.public})
    guard.look(zone={B})
    assert guard.engine.counters["keys_malformed"] == 1
    assert guard.heard(A) == "accepted"


def test_no_more_than_so_many_keys_are_tried():
    many = {f"ecdsa_{number:03}": keys.generate().public for number in range(limits.MAX_KEYS)}
    guard = Guard().look(keys={**many, "ecdsa_zzz": PAIR.public})
    assert guard.heard(A) == "refused"
    assert guard.engine.counters["keys_over_limit"] == 1
    assert Guard().look(keys={"ecdsa_": PAIR.public, **many}).heard(A) == "accepted"


def test_somebody_who_talks_all_the_time_is_not_listened_to():
    guard = Guard()
    verdicts = [guard.heard(X, OTHER_PRIVATE) for _ in range(5)]
    assert verdicts == ["refused", *["over_limit"] * 4]


# --- nobody knows anybody --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zone", [set(), {B, C}])
def test_while_the_ledger_has_had_no_key_the_holder_of_our_own_is_trusted(zone):
    guard = Guard(view=TrustView(zone=frozenset(zone)))
    assert guard.heard(A, bound=False) == "without_keys", "EdgeVPN's word can be anybody's"
    guard.clock.advance(5)
    assert guard.heard(X, OTHER_PRIVATE) == "refused"
    assert guard.heard(A) == "accepted"
    assert guard.admitted() == {A: ""}, "no note: the ledger has no such key that could be removed"


@pytest.mark.parametrize("view", [TrustView(notes={B: PRINT}), TrustView(keys={"ecdsa_1": OTHER.public})])
def test_once_the_ledger_has_had_a_key_our_own_counts_no_more(view):
    guard = Guard(view=view)
    guard.look(keys={}, notes={})
    assert guard.heard(A) == "without_keys"


@pytest.mark.parametrize("options", [{"relaxed": True}, {"enabled": False}])
def test_where_everybody_may_speak_nobody_is_let_in_before_there_is_a_key(options):
    guard = Guard(view=TrustView())
    guard.gate.relaxed, guard.gate.enabled = options.get("relaxed", False), options.get("enabled", True)
    assert guard.heard(A) == "without_keys"


def test_a_trusted_node_that_forgot_everything_is_answered_once():
    guard = Guard().look(zone={ME, A}, room={A})
    assert guard.heard(A) == "answered"
    assert said(guard.run(30)) == [{"kairos-p2p"}]
    assert guard.heard(A, inside=True) == "needless"
    assert guard.run(30) == []


# --- taking off ------------------------------------------------------------------------------------------------------


def expelled(effects):
    return {effect.peer: at for at, effect in effects if isinstance(effect, Expel)}


def test_autoclean_takes_off_who_is_gone_for_long_and_nobody_else():
    guard = Guard(autoclean=True, offline_after=900).look(zone={ME, A, B, C, X}, room={A}, live={B})
    assert expelled(guard.run(899)) == {}
    assert set(expelled(guard.run(2))) == {C, X}


def test_who_comes_back_in_time_stays():
    guard = Guard(autoclean=True, offline_after=900).look(zone={ME, A, B}, room={A})
    guard.run(800)
    guard.look(room={A, B})
    guard.run(800)
    guard.look(room={A})
    assert expelled(guard.run(899)) == {}
    assert set(expelled(guard.run(2))) == {B}


def test_who_is_alone_takes_nobody_off():
    guard = Guard(autoclean=True).look(zone={ME, A, B}, room=set())
    assert expelled(guard.run(5000)) == {}
    guard.look(room={X})  # a stranger is no company
    assert expelled(guard.run(5000)) == {}


def test_without_autoclean_nobody_is_taken_off():
    guard = Guard().look(zone={ME, A, B}, room={A})
    assert expelled(guard.run(5000)) == {}


def test_when_a_key_is_removed_those_whom_it_let_in_are_taken_off():
    notes = {ME: PRINT, A: PRINT, B: OTHER_PRINT}
    guard = Guard().look(zone={ME, A, B, C}, room={A, B, C}, notes=notes)
    guard.look(keys={"ecdsa_1": PAIR.public, "ecdsa_2": OTHER.public})
    assert expelled(guard.run(100)) == {}
    guard.look(keys={"ecdsa_2": OTHER.public})
    assert expelled(guard.run(module.REVOKE_AFTER - 1)) == {}
    assert set(expelled(guard.run(2))) == {A}, "not ourselves, nor whom EdgeVPN let in"


def test_a_key_that_comes_back_in_time_takes_nobody_off():
    guard = Guard().look(zone={ME, A}, room={A}, notes={A: PRINT})
    guard.look(keys={"ecdsa_2": OTHER.public})
    guard.run(20)
    guard.look(keys={"ecdsa_1": PAIR.public})
    guard.run(20)
    guard.look(keys={"ecdsa_2": OTHER.public})
    assert expelled(guard.run(20)) == {}


def test_removing_the_last_key_takes_nobody_off():
    guard = Guard().look(zone={ME, A}, room={A}, notes={A: PRINT}, keys={})
    assert expelled(guard.run(1000)) == {}


# --- reasons and records ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("private", "view", "reasons"),
    [
        (PRIVATE, {"room": set()}, []),
        (PRIVATE, {"zone": {ME, A}}, []),
        (PRIVATE, {"zone": {ME}, "keys": {}}, [NoTrustedKey()]),
        (PRIVATE, {"keys": {}}, [NoTrustedKey()]),
        (PRIVATE, {}, [NotAdmitted(PRINT, known=True, asked=0)]),
        (OTHER_PRIVATE, {}, [NotAdmitted(OTHER_PRINT, known=False, asked=0)]),
        (None, {}, [NoKeyToAskWith()]),
        (None, {"zone": {ME}}, []),
    ],
)
def test_it_says_why_it_is_not_heard(private, view, reasons):
    guard = Guard(private).look(**{"room": {A}, **view})
    assert guard.engine.explain() == reasons
    assert all(reason.text() for reason in reasons)


def test_records_of_others_are_read_with_care():
    assert read_keys({"ecdsa_1": '"k"', "my-ecdsa": '"l"', "rsa": '"m"', "ecdsa_2": "1", "ecdsa_3": "{"}) == {
        "ecdsa_1": "k",
        "my-ecdsa": "l",
    }
    good = note_text(PRINT)
    bad = ["", "1", "[]", '{"key":1}', '{"key":"short"}', "[" * 3000, '"' + "x" * 9000 + '"']
    assert read_notes({"a": good, **{f"b{n}": text for n, text in enumerate(bad)}}) == {PeerId("a"): PRINT}
