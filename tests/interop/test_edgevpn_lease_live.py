"""Line 8 of the checklist: mixed groups lease addresses together (spec/edgevpn.md 9, 16).

All networks at once, because EdgeVPN needs about ten seconds for each address. It never leases alone: a group of two
is the smallest in which it gets one.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.interop.cells import CELLS, expected_apart
from tests.interop.network import NEW, PATIENCE, Site, cannot, reasons, refusals, until

pytestmark = pytest.mark.root

SHAPES = {
    "1 Go, 1 ours": (1, 1, ""),
    "2 Go, 1 ours": (2, 1, ""),
    "1 Go, 2 ours": (1, 2, ""),
    "1 Go static, 1 Go, 1 ours": (2, 1, "go1"),
    "1 Go, 1 ours static, 1 ours": (1, 2, "ours2"),
}


OTHERS = [cell for cell in CELLS if (cell.version, cell.mode) != (NEW, "enforce")]


@pytest.fixture(scope="module")
def groups(make_lasting_site):
    """Every network whose program is there, and when they were started."""
    made: dict[Any, Site] = {}
    if not cannot(NEW):
        for name, (go, ours, static) in SHAPES.items():
            made[name] = make_lasting_site(go, ours, address="")
            for node in made[name].nodes:
                if node.name == static:
                    node.address = "10.1.0.7"
    for cell in OTHERS:
        if not cannot(cell.version):
            counts = (1, 1) if cell.apart else (2, 2)
            made[cell] = make_lasting_site(*counts, version=cell.version, ownership=cell.mode, address="")
    for site in made.values():
        site.start()
    return made, time.monotonic()


def together(site, began):
    """Everybody leases, nobody twice, everybody knows; returns how long it took."""
    for node in site.nodes:
        until(lambda node=node: node.lease, f"{node.name} has an address", 3 * PATIENCE)
    taken = time.monotonic() - began

    def everywhere():
        held = {each.lease: each.peer for each in site.nodes}
        return len(held) == len(site.nodes) and all(node.machines() == held for node in site.nodes)

    # on a machine so busy that nodes do not hear each other for seconds, ours steps aside once
    until(everywhere, "no address twice, every record everywhere")
    assert all(node.lease == node.address for node in site.nodes if node.address)
    for node in site.nodes:
        assert refusals(node) == []
    return taken


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.row(
    8, "one address each, everybody knows all; with static addresses among them too", version=NEW, mode="enforce"
)
def test_every_node_leases_an_address_of_its_own(edgevpn_bin, groups, shape, seen):
    made, began = groups
    seen(f"{shape}: within {together(made[shape], began):.0f} s")


@pytest.mark.parametrize("cell", OTHERS, ids=str)
@pytest.mark.row(
    8,
    "2 Go and 2 ours: one address each, everybody knows all",
    expected_by=expected_apart("we lease by ourselves, it never does alone; `mixed-ledger-formats` says why"),
)
def test_a_group_of_four_leases_together(groups, cell, seen):
    if reason := cannot(cell.version):
        pytest.skip(reason)
    made, began = groups
    if not cell.apart:
        seen(f"within {together(made[cell], began):.0f} s")
        return
    (go,), (ours,) = made[cell].go, made[cell].ours
    until(lambda: ours.lease, "we have an address")
    until(lambda: "mixed-ledger-formats" in reasons(ours), "the reason is named")
    assert not go.lease
