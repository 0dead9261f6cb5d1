"""The ledger among Go nodes beyond the checklist: deletions, ownership, the reaper, versions, two formats at once.

Rows with a mode ``a/b``: EdgeVPN runs with ``a``, ours with ``b`` (spec/edgevpn.md 5.8 to 5.12).
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from provider_kairos.ids import peer_id_of_public_key
from provider_kairos.ledger.leader import leader
from tests.interop.cells import CELLS
from tests.interop.network import NEW, OLD, reasons, refusals, until, whole, write_reaches

pytestmark = pytest.mark.root

MODES = ("enforce", "observe", "off")


# --- deletions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", [cell for cell in CELLS if not cell.apart], ids=str)
@pytest.mark.row(
    "ledger: deletions", "either deletes its own and the other's keys, and buckets; the same tombstones remain"
)
def test_ledgers_agree_after_deletions(make_site, cell, seen):
    site = make_site(1, 1, version=cell.version, ownership=cell.mode).start()
    (go,), (ours,) = site.go, site.ours
    whole(go, ours)
    for one, other in ((go, ours), (ours, go)):
        for number in range(3):
            write_reaches(one, other, "kairos", f"{one.name}-{number}")
        write_reaches(one, other, "odd", one.name)

    # EdgeVPN defends a write until it looked again, up to 8 s later: deletions before that would be undone by it
    time.sleep(8)
    for one, other in ((go, ours), (ours, go)):
        one.delete("kairos", f"{one.name}-0")  # its own
        one.delete("kairos", f"{other.name}-1")  # the other's
    gone = {f"{node.name}-{number}" for node in site.nodes for number in (0, 1)}
    for node in site.nodes:
        until(lambda node=node: not gone & node.bucket("kairos").keys(), f"{node.name} has deleted")
    go.delete("odd")
    until(lambda: not ours.bucket("odd"), "a deleted bucket is gone here too")

    def same():
        theirs, mine = go.entries(), ours.entries()
        # heartbeats move on while we look
        return all(theirs.get(each) == mine.get(each) for each in {*theirs, *mine} - {"healthcheck"})

    until(same, "the same records, tombstones included")
    entries = go.entries()["kairos"]
    if cell.mode == "off":
        assert gone.isdisjoint(entries)
        assert all(isinstance(entry, str) for entry in entries.values())
    else:
        assert all(entries[key]["Deleted"] for key in gone)
        assert all(entry["Sig"] for entry in entries.values())
        seen(f"{len(gone)} tombstones")
    for node in site.nodes:
        assert refusals(node) == []
        assert "failed" not in node.log


# --- modes that differ ----------------------------------------------------------------------------------------------

PAIRS = [(theirs, ours) for theirs in MODES for ours in MODES if theirs != ours]
READ = {
    ("off", "enforce"): "new keys of open buckets are taken, unsigned owned records are refused and said",
    ("off", "observe"): "taken, every unsigned owned record is said",
    ("enforce", "off"): "signed records are merged into ours",
    ("observe", "off"): "signed records are merged into ours",
    ("enforce", "observe"): "read",
    ("observe", "enforce"): "read",
}
ACCEPTED = {
    ("off", "enforce"): "adopted when our height is above its own, nothing to rely on: said in `status`",
    ("off", "observe"): "adopted when our height is above its own, nothing to rely on: said in `status`",
    ("enforce", "off"): "new keys of open buckets are taken, owned records refused: said in `status`",
    ("observe", "off"): "taken, every owned record is said",
    ("enforce", "observe"): "accepted",
    ("observe", "enforce"): "accepted",
}


def pairs(line, expected):
    """A test per pair of modes, a row of its own for each."""
    cases = [
        pytest.param(
            *pair, id="/".join(pair), marks=pytest.mark.row(line, expected[pair], version=NEW, mode="/".join(pair))
        )
        for pair in PAIRS
    ]
    return pytest.mark.parametrize(("theirs", "mine"), cases)


@pytest.fixture
def pair(make_site, theirs, mine):
    site = make_site(1, 1, ownership=theirs)
    site.ours[0].ownership = mine
    for node in site.start().nodes:
        assert node.peer
    return site.go[0], site.ours[0]


@pairs(4, READ)
def test_we_read_them_in_another_mode(pair, theirs, mine):
    go, ours = pair
    write_reaches(go, ours, "kairos", "from-go")
    if (theirs, mine) == ("off", "enforce"):
        until(lambda: go.peer in " ".join(refusals(ours)), "the refusal is said")
        assert go.peer not in ours.heartbeats()
    else:
        until(lambda: go.peer in ours.heartbeats() and ours.machines().get(go.address) == go.peer, "owned records")
    if theirs == "off" or mine == "off":
        until(lambda: "mixed-ledger-formats" in reasons(ours), "the formats are named")
    else:
        assert "mixed-ledger-formats" not in reasons(ours)


@pairs(5, ACCEPTED)
def test_they_accept_us_in_another_mode(pair, theirs, mine):
    go, ours = pair
    if theirs == "off":  # whether it adopts depends on who counted further
        until(lambda: "mixed-ledger-formats" in reasons(ours), "the formats are named")
        return
    write_reaches(ours, go, "kairos", "from-ours")
    if (theirs, mine) == ("enforce", "off"):
        until(lambda: ours.peer in " ".join(refusals(go)), "EdgeVPN says what it refuses")
        assert ours.peer not in go.heartbeats()
        assert ours.address not in go.machines()
    else:
        until(lambda: ours.peer in go.heartbeats() and go.machines().get(ours.address) == ours.peer, "owned records")


# --- two formats in one network -------------------------------------------------------------------------------------


@pytest.mark.row("ledger: two formats", "named; ours shares with the signing node only", version="both", mode="enforce")
def test_old_and_new_nodes_together_are_named(make_site, edgevpn_bin, edgevpn_old_bin, seen):
    old, new, ours = three(make_site, "enforce")
    whole(new, ours)
    until(lambda: "mixed-ledger-formats" in reasons(ours), "the formats are named")
    (reason,) = [each for each in ours.get("/api/v1/status")["waiting"] if each["code"] == "mixed-ledger-formats"]
    assert reason["text"].startswith("nodes of two ledger formats: 1 write unsigned records"), reason["text"]
    assert ", 2 sign them" in reason["text"]
    assert old.peer not in ours.heartbeats()
    seen(reason["text"].partition(",")[0] + ", 2 sign them")


@pytest.mark.row(
    "ledger: two formats",
    "named; ours speaks plainly to the old node and shares packets with it, reads the new one, loses nothing of either",
    version="both",
    mode="off",
)
def test_off_speaks_to_the_old_nodes_of_a_mixed_network(make_site, edgevpn_bin, edgevpn_old_bin):
    old, new, ours = three(make_site, "off")
    whole(old, ours)
    for one, other in ((old, ours), (ours, old)):
        until(lambda one=one, other=other: one.ping(other.address, 1), f"ping {one.name} -> {other.name}")
        write_reaches(one, other, "kairos", f"from-{one.name}")
    write_reaches(new, ours, "kairos", "from-new")
    until(lambda: old.value("kairos", "from-new") == "said", "the old node reads the new one through us")
    until(lambda: "mixed-ledger-formats" in reasons(ours), "the formats are named")
    # through several of everybody's broadcasts
    for number in range(10):
        time.sleep(2)
        for node in (old, ours):
            assert {old.address, ours.address} <= node.machines().keys(), f"{node.name}, after {number * 2} s"
    undecodable = [line for line in old.log.splitlines() if "cannot unmarshal object" in line and ours.peer in line]
    assert undecodable == []


def three(make_site, mode):
    """An old node, a new one that enforces, and ours in ``mode``, started."""
    site = make_site(2, 1, ownership="enforce")
    old, new, ours = site.nodes
    old.version, ours.ownership = OLD, mode
    site.start()
    return old, new, ours


# --- heartbeats and the reaper ----------------------------------------------------------------------------------------

OFFLINE, SCRUB, WINDOW = 12, 6, 16
SHORT = {
    "HEALTHCHECKMAXINTERVAL": str(OFFLINE),
    "HEALTHCHECKSCRUBINTERVAL": str(SCRUB),
    "EDGEVPNOWNERSHIPTTL": str(WINDOW),
}


def lead(node, over):
    """Give a Go node that has not started an identity that leads, or does not lead, another peer."""
    while True:
        key = Ed25519PrivateKey.generate()
        public = key.public_key().public_bytes_raw()
        peer = peer_id_of_public_key(public)
        if (leader(sorted([peer, over[0]])) == peer) is over[1]:
            break
    path = Path(node.home) / "key" / "privkey"
    path.parent.mkdir(parents=True, mode=0o700)
    path.write_bytes(bytes.fromhex("08011240") + key.private_bytes_raw() + public)
    path.chmod(0o600)
    return peer


@pytest.fixture(scope="module")
def reaped(make_lasting_site):
    """Per mode and leader a network of two Go nodes and ours from which one Go node was taken away."""
    made = {}
    for mode in MODES:
        for go_leads in (True, False):
            site = make_lasting_site(2, 1, ownership=mode, cached_key=True, heartbeat=4, environment=SHORT)
            ours = site.ours[0].start()
            for node in site.go:
                lead(node, (ours.peer, go_leads))
                node.start()
            made[mode, go_leads] = site
    gone = {}
    for which, site in made.items():
        whole(*site.nodes)
        gone[which] = site.go[1].peer
        site.go[1].end(9)
    return made, gone


@pytest.mark.parametrize("go_leads", [True, False], ids=["go-leads", "ours-leads"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.row(
    "ledger: reaper",
    "a dead node's heartbeat and machine record go, whoever leads; the living stay; ours and the leader forget tombstones",
    version=NEW,
    expected_by={(NEW, "off"): "a dead node's heartbeat goes, whoever leads; those of the living come back"},
)
def test_the_dead_are_taken_away(reaped, mode, go_leads, seen):
    made, gone = reaped
    site, dead = made[mode, go_leads], gone[mode, go_leads]
    nodes = (site.go[0], site.ours[0])
    living = {node.peer for node in nodes}
    for node in nodes:
        until(lambda node=node: dead not in node.heartbeats(), f"{node.name}: the dead heartbeat is gone")
        until(lambda node=node: living <= node.heartbeats(), f"{node.name}: the living are there")
    if mode != "off":
        for node in nodes:
            until(lambda node=node: dead not in node.machines().values(), f"{node.name}: its machine record is gone")
        leading = site.go[0] if go_leads else site.ours[0]
        if tombstone := leading.entries()["healthcheck"].get(dead):
            assert tombstone["Owner"] == leading.peer
            seen("tombstone by the leader")
        # of EdgeVPN nodes only the leader forgets tombstones
        for node in {leading.name: leading, "ours": site.ours[0]}.values():
            until(lambda node=node: dead not in node.entries()["healthcheck"], f"{node.name}: tombstone forgotten")
    for node in nodes:
        assert {node.address for node in nodes} <= node.machines().keys()
    seen(f"{'EdgeVPN' if go_leads else 'ours'} leads")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.row("ledger: heartbeats", "each one's heartbeat advances at the other", version=NEW)
def test_heartbeats_advance_on_both_sides(reaped, mode):
    made, _ = reaped
    site = made[mode, True]
    for one, other in ((site.go[0], site.ours[0]), (site.ours[0], site.go[0])):
        peer = other.peer
        known: set[str] = set()

        def advanced(one=one, peer=peer, known=known):
            known.add(one.bucket("healthcheck").get(peer, ""))
            return len(known - {""}) >= 3

        until(advanced, f"{one.name} sees {other.name}'s heart beat")


# --- versions -----------------------------------------------------------------------------------------------------------

JUMP = """
from provider_kairos.ledger.writer import Writer
_next = Writer._next_version
Writer._next_version = lambda *them: _next(*them) + {}
"""
DAY = 86_400 * 10**9


@pytest.mark.row(
    "ledger: versions",
    "a version a month ahead is taken everywhere, and either side's next write is above it",
    version=NEW,
    mode="enforce",
)
def test_versions_that_jump_ahead_do_not_freeze_a_record(make_site):
    site = make_site(1, 2).start({"ours3": JUMP.format(30 * DAY)})
    (go,), (ours, jumping) = site.go, site.ours
    whole(*site.nodes)
    jumping.put("kairos", "k", "ahead")
    for node in (go, ours):
        until(lambda node=node: node.value("kairos", "k") == "ahead", f"{node.name} takes it")
    for one, other in ((go, ours), (ours, go)):
        one.put("kairos", "k", f"by-{one.name}")
        for node in (other, jumping):
            until(lambda one=one, node=node: node.value("kairos", "k") == f"by-{one.name}", f"{one.name} writes on")
    assert go.entries()["kairos"] == ours.entries()["kairos"]


@pytest.mark.row(
    "ledger: versions",
    "a version years ahead freezes the key at EdgeVPN; here it is refused and counted, everything else converges",
    version=NEW,
    mode="enforce",
)
def test_absurd_versions_are_refused_here(make_site):
    site = make_site(1, 2)
    (go,), (ours, jumping) = site.go, site.ours
    jumping.ownership = "observe"  # in ``enforce`` it would refuse its own write
    site.start({"ours3": JUMP.format(4000 * DAY)})
    assert jumping.peer
    jumping.put("kairos", "k", "absurd")
    until(lambda: go.value("kairos", "k") == "absurd", "EdgeVPN takes it")
    until(lambda: ours.get("/api/v1/status")["counters"].get("rejected"), "counted here")
    assert ours.value("kairos", "k") == ""
    whole(go, ours)
    for one, other in ((go, ours), (ours, go)):
        write_reaches(one, other, "kairos", f"from-{one.name}")
