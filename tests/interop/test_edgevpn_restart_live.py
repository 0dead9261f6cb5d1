"""Line 10 of the checklist: either node restarts, with its cached identity and with a new one (spec/edgevpn.md 16)."""

from __future__ import annotations

import signal
import time

import pytest

from tests.interop.cells import CELLS, expected_apart
from tests.interop.network import NEW, PATIENCE, reasons, until, whole, write_reaches

pytestmark = pytest.mark.root

TERM, KILL = signal.SIGTERM, signal.SIGKILL


def restarts():
    """Every cell: killed, back as the same peer and as another; where the defaults are, ended in order too."""
    for cell in CELLS:
        for kind in ("ours", "go"):
            for number, identity in ((TERM, "same"), (KILL, "same"), (KILL, "new")):
                if number is KILL or (cell.version, cell.mode) == (NEW, "enforce"):
                    yield pytest.param(cell, kind, (number, identity), id=f"{cell}-{kind}-{number.name}-{identity}")


@pytest.mark.parametrize(("cell", "kind", "how"), list(restarts()))
@pytest.mark.row(
    10,
    "what was written and deleted meanwhile reaches it, packets pass again",
    expected_by=expected_apart("it is in the room again, and the formats are named again"),
)
def test_a_node_that_restarts_is_back(make_site, seen, cell, kind, how):
    """With a new identity and the old address the other side holds the address for the dead peer until its heartbeat is
    older than the ownership window, as EdgeVPN does in ``enforce``: shortened here.
    """
    number, identity = how
    options = {"version": cell.version, "ownership": cell.mode, "environment": {"EDGEVPNOWNERSHIPTTL": "25"}}
    site = make_site(1, 1, cached_key=True, **options).start()
    (go,), (ours,) = site.go, site.ours
    node, other = (go, ours) if kind == "go" else (ours, go)
    if cell.apart:
        until(lambda: "mixed-ledger-formats" in reasons(ours), "the formats are named")
    else:
        whole(go, ours)
        for key in ("stays", "goes"):
            write_reaches(other, node, "kairos", key)
        write_reaches(node, other, "kairos", "its-own")
    peer = node.peer
    node.end(number)
    if identity == "new":
        node.forget_identity()
    if not cell.apart:
        other.delete("kairos", "goes")
        other.put("kairos", "meanwhile", "said")
    began = time.monotonic()
    node.start()
    assert (node.peer == peer) is (identity == "same")
    if cell.apart:
        until(
            lambda: other.get("/api/summary")["OnChainNodes"] == 1 == node.get("/api/summary")["OnChainNodes"], "room"
        )
        until(lambda: "mixed-ledger-formats" in reasons(ours), "the formats are named")
    else:
        is_back(go, ours, node, other)
    seen(f"{kind} {number.name} {identity}: {time.monotonic() - began:.1f} s")


def is_back(go, ours, node, other):
    whole(go, ours)
    for one, two in ((go, ours), (ours, go)):
        until(lambda one=one, two=two: one.ping(two.address, 1), f"ping {one.name} -> {two.name}", 2 * PATIENCE)
    for key in ("stays", "meanwhile", "its-own"):
        until(lambda key=key: node.value("kairos", key) == "said", f"{node.name} has {key}")
    # what EdgeVPN deletes within seconds of its own write it puts back itself
    if node is ours:
        until(lambda: go.bucket("kairos") == ours.bucket("kairos"), "the same bucket")
    else:
        until(lambda: not node.value("kairos", "goes"), "the deletion is seen")
    write_reaches(go, ours, "kairos", "after-go")
    write_reaches(ours, go, "kairos", "after-ours")
