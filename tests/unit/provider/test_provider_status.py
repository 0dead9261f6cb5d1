"""The provider's own file, and what the engine is told of a configuration."""

from __future__ import annotations

import json

import pytest

from provider_kairos.clock import ManualClock
from provider_kairos.config import load
from provider_kairos.errors import ConfigError
from provider_kairos.ids import NodeUuid
from provider_kairos.provider.machine import FakeMachine
from provider_kairos.provider.status import PHASES, STATUS_FILE, Status
from provider_kairos.provider.wiring import role_settings
from provider_kairos.roles.model import Role
from provider_kairos.roles.reasons import MoreNodes

NOW = ManualClock().now()


def written(status, machine=None):
    machine = machine or FakeMachine()
    status.write(machine, NOW, 1.25)
    return json.loads(machine.files[STATUS_FILE])


def test_phases_are_in_order_and_one_is_active():
    status = Status(uuid="u")
    assert [p["name"] for p in status.phases()] == list(PHASES)
    assert [p["state"] for p in status.phases()] == ["active", *["pending"] * 5]
    assert status.reach("daemon", 1.0)
    assert not status.reach("daemon", 2.0)
    status.reach("role", 3.0)
    assert [p["state"] for p in status.phases()] == ["done", "active", "done", "pending", "pending", "pending"]
    assert status.phases()[0]["seconds"] == 1.0


def test_what_is_not_known_is_null():
    document = written(Status(uuid="u", network_id="kairos"))
    assert document["schema"] == 1
    assert [document[k] for k in ("role", "leader", "first_master", "address", "service", "error")] == [None] * 6
    assert document["ready"] is False


def test_reasons_are_records():
    document = written(Status(waiting=(MoreNodes(1, 3),)))
    assert document["waiting"] == [
        {"code": "more-nodes", "text": "waiting for 2 more nodes: 1 of 3 seen", "seen": 1, "needed": 3}
    ]


def test_it_is_written_when_something_changed_and_for_root_alone():
    machine, status = FakeMachine(), Status(uuid="u")
    written(status, machine)
    status.write(machine, NOW.plus(5), 6.25)
    assert machine.done == [f"write {STATUS_FILE}"]
    status.role = "worker"
    status.write(machine, NOW.plus(5), 6.25)
    assert len(machine.done) == 2
    assert machine.modes[STATUS_FILE] == 0o600


def test_an_error_fails_the_active_phase():
    status = Status(error="wrong")
    status.reach("daemon", 1.0)
    assert [p["state"] for p in status.phases()][:3] == ["done", "failed", "pending"]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("p2p: {network_token: x}", {"minimum_nodes": 2, "network_id": "kairos", "forced": None, "ha": False}),
        ("p2p: {network_token: x, minimum_nodes: 1, network_id: a}", {"minimum_nodes": 1, "network_id": "a"}),
        ("p2p: {network_token: x, role: none}", {"forced": Role.NONE, "fixed_role": Role.NONE}),
        ("p2p: {network_token: x, role: auto}", {"forced": Role.AUTO, "fixed_role": None}),
        (
            "p2p: {network_token: x, role: master, auto: {ha: {master_nodes: 2}}}",
            {"ha": True, "additional_masters": 2, "fixed_role": Role.CLUSTER_INIT},
        ),
        (
            "p2p: {network_token: x, auto: {ha: {enable: false, master_nodes: 2}}}",
            {"ha": False, "additional_masters": 0},
        ),
    ],
)
def test_role_settings(config, expected):
    found = role_settings(load(config).settings, NodeUuid("u"))
    assert {key: getattr(found, key) for key in expected} == expected


def test_a_role_that_is_none_of_the_words():
    with pytest.raises(ConfigError, match=r"invalid p2p\.role"):
        role_settings(load("p2p: {network_token: x, role: boss}").settings, NodeUuid("u"))
