"""The ownership table and the judgement of 5.9, step by step."""

from __future__ import annotations

from dataclasses import replace

import pytest

from provider_kairos.errors import ConfigError
from provider_kairos.ledger.entry import Entry
from provider_kairos.ledger.policy import (
    FUTURE_BOUND,
    OWNERSHIP,
    Outcome,
    OwnershipMode,
    Surroundings,
    derived_owner,
    is_absurd_version,
    judge,
    parse_mode,
)
from provider_kairos.ledger.signing import Signer

A, B = Signer(b"\x01" * 32), Signer(b"\x02" * 32)
NOW = 1_800_000_000
NS = NOW * 10**9
ALIVE = Surroundings(NS, 480, lambda peer: True)
DEAD = Surroundings(NS, 480, lambda peer: False)


def machine(signer: Signer, version: int = NS, *, names: Signer | None = None, deleted: bool = False) -> Entry:
    value = "" if deleted else f'{{"PeerID":"{(names or signer).peer_id}","Address":"10.1.0.5"}}'
    return signer.sign("machines", "10.1.0.5", value, version, version // 10**9, deleted=deleted)


def step(incoming: Entry, stored: Entry | None, around: Surroundings = ALIVE) -> tuple[str, Outcome]:
    judgement = judge("machines", "10.1.0.5", incoming, stored, around)
    return judgement.step, judgement.outcome


def unsigned(signer: Signer) -> Entry:
    return Entry(machine(signer).value)


@pytest.mark.parametrize(
    ("name", "incoming", "stored", "around", "expected"),
    [
        ("identical", machine(A), machine(A), ALIVE, ("0", Outcome.SAME)),
        ("unsigned", unsigned(A), None, ALIVE, ("a", Outcome.REJECT)),
        ("forged", replace(machine(A), value="x"), None, ALIVE, ("a", Outcome.REJECT)),
        ("from the far future", machine(A, NS + 2 * FUTURE_BOUND), None, ALIVE, ("a'", Outcome.REJECT)),
        ("tombstone for unknown key", machine(A, deleted=True), None, ALIVE, ("b1", Outcome.STALE)),
        ("tombstone of a stranger", machine(B, NS + 1, deleted=True), machine(A), ALIVE, ("b2", Outcome.REJECT)),
        ("late tombstone", machine(A, NS - 1, deleted=True), machine(A), ALIVE, ("b3", Outcome.STALE)),
        ("own tombstone", machine(A, NS + 1, deleted=True), machine(A), ALIVE, ("b4", Outcome.ACCEPT)),
        ("reaper's tombstone", machine(B, NS + 1, deleted=True), machine(A), DEAD, ("b4", Outcome.ACCEPT)),
        ("in another's name", machine(A, names=B), None, ALIVE, ("c", Outcome.REJECT)),
        ("new", machine(A), None, ALIVE, ("d", Outcome.ACCEPT)),
        ("revival of what was deleted later", machine(A), machine(A, deleted=True), ALIVE, ("e1", Outcome.STALE)),
        ("reclaim", machine(B, NS + 1), machine(A, deleted=True), ALIVE, ("e2", Outcome.ACCEPT)),
        ("theft", machine(B, NS + 1), machine(A), ALIVE, ("f", Outcome.REJECT)),
        ("takeover", machine(B, NS + 1), machine(A), DEAD, ("i", Outcome.ACCEPT)),
        ("theft of a legacy entry", machine(B), unsigned(A), ALIVE, ("f", Outcome.REJECT)),
        ("a legacy entry's owner signs", machine(A), unsigned(A), ALIVE, ("i", Outcome.ACCEPT)),
        ("rollback", machine(A, NS - 1), machine(A), ALIVE, ("g", Outcome.STALE)),
        ("update", machine(A, NS + 1), machine(A), ALIVE, ("i", Outcome.ACCEPT)),
    ],
)
def test_owned_steps(name: str, incoming: Entry, stored: Entry, around: Surroundings, expected: tuple[str, Outcome]):
    assert step(incoming, stored, around) == expected


def test_step_h_is_decided_the_same_way_by_both_sides():
    one = A.sign("dns", "k", "1", NS, NOW)
    two = A.sign("dns", "k", "2", NS, NOW)
    verdicts = {judge("dns", "k", one, two, ALIVE).step, judge("dns", "k", two, one, ALIVE).step}
    assert verdicts == {"h", "i"}


@pytest.mark.parametrize(
    ("bucket", "owner"),
    [
        ("machines", A.peer_id),
        ("services", A.peer_id),
        ("files", A.peer_id),
        ("users", "the key"),
        ("egress", "the key"),
        ("healthcheck", "the key"),
        ("dns", ""),
        ("kairos", ""),
    ],
)
def test_ownership_table(bucket: str, owner: str):
    assert derived_owner(bucket, "the key", unsigned(A)) == owner


def test_values_without_a_peer_name_nobody():
    for value in ("", "5", "[]", '{"PeerID":5}', "{", "[" * 100_000):
        assert derived_owner("machines", "10.1.0.5", Entry(value)) == ""


def test_a_heartbeat_expires_by_its_own_time():
    old = A.sign("healthcheck", A.peer_id, '"x"', NS - 481 * 10**9, NOW - 481)
    fresh = A.sign("healthcheck", A.peer_id, '"x"', NS - 479 * 10**9, NOW - 479)
    reaper = B.sign("healthcheck", A.peer_id, "", NS, NOW, deleted=True)
    assert judge("healthcheck", A.peer_id, reaper, old, DEAD).outcome is Outcome.ACCEPT
    assert judge("healthcheck", A.peer_id, reaper, fresh, DEAD).outcome is Outcome.REJECT
    # and not while we have seen it advance, whatever its clock says
    assert judge("healthcheck", A.peer_id, reaper, old, ALIVE).outcome is Outcome.REJECT


def open_step(incoming: Entry, stored: Entry | None) -> str:
    return judge("kairos", "k", incoming, stored, ALIVE).step


def test_open_buckets_compare_versions_only():
    older, newer = A.sign("kairos", "k", "1", NS, NOW), B.sign("kairos", "k", "2", NS + 1, NOW)
    assert open_step(older, None) == "1b"
    assert open_step(newer, older) == "1g"
    assert open_step(older, newer) == "1d"
    assert open_step(Entry("3"), None) == "1b"
    assert open_step(Entry("3"), older) == "1d"
    assert open_step(Entry("3"), Entry("4")) == "1e"
    assert open_step(older, Entry("4")) == "1g"
    tie = B.sign("kairos", "k", "2", NS, NOW)
    assert {open_step(tie, older), open_step(older, tie)} == {"1f", "1g"}


def test_absurd_versions_are_refused_and_give_way():
    absurd = A.sign("kairos", "k", "1", 2**64 - 1, NOW)
    assert judge("kairos", "k", absurd, None, ALIVE).outcome is Outcome.REJECT
    assert open_step(B.sign("kairos", "k", "2", NS, NOW), absurd) == "1c"


def test_a_machine_without_a_clock_judges_no_versions_by_it():
    assert not is_absurd_version(NS, unix_ns=5 * 10**9)
    assert is_absurd_version(2**63, unix_ns=5 * 10**9)
    assert not is_absurd_version(NS + FUTURE_BOUND, NS)
    assert is_absurd_version(NS + FUTURE_BOUND + 1, NS)


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("off", OwnershipMode.OFF),
        ("", OwnershipMode.OFF),
        ("observe", OwnershipMode.OBSERVE),
        ("log", OwnershipMode.OBSERVE),
        ("LOG-only", OwnershipMode.OBSERVE),
        (" Enforce ", OwnershipMode.ENFORCE),
        ("on", OwnershipMode.ENFORCE),
    ],
)
def test_mode_names(text: str, mode: OwnershipMode):
    assert parse_mode(text) is mode


def test_a_misspelt_mode_does_not_switch_protection_off():
    with pytest.raises(ConfigError, match="enforced"):
        parse_mode("enforced")


def test_owned_buckets_are_the_specifications():
    edgevpn = {"machines", "services", "files", "users", "egress", "dns", "healthcheck"}
    assert set(OWNERSHIP) == edgevpn | {"kairos-p2p.lease"}


def test_a_lease_note_is_its_peers_for_good():
    stored = A.sign("kairos-p2p.lease", A.peer_id, "1", 1, 1)
    forged = B.sign("kairos-p2p.lease", A.peer_id, "2", 9, 9)
    buried = B.sign("kairos-p2p.lease", A.peer_id, "", 9, 9, deleted=True)
    nobody_lives = DEAD
    for attempt in (forged, buried):
        judgement = judge("kairos-p2p.lease", A.peer_id, attempt, stored, nobody_lives)
        assert judgement.outcome is Outcome.REJECT
