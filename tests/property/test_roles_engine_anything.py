"""Whatever the ledger holds, a step does not raise and keeps the rules that must never break."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from provider_kairos.clock import ManualClock
from provider_kairos.ids import NodeUuid
from provider_kairos.roles.effects import Configure, PutKey
from provider_kairos.roles.engine import RolesEngine, RoleSettings
from provider_kairos.roles.model import Held, LocalTruth, Meta, Role, advertisement, view_of

UUIDS = ["me", "a", "b", "c"]
ROLES = st.sampled_from(["", "auto", "none", "nonsense", *map(str, Role)])
METAS = st.none() | st.builds(
    Meta,
    held=st.sampled_from([None, Role.MASTER, Role.CLUSTER_INIT, Role.HA, Role.WORKER]),
    deployed=st.booleans(),
    forced=st.booleans(),
    published=st.booleans(),
    generation=st.sampled_from(["", "1", "2"]),
)


@st.composite
def ledgers(draw):
    values = {}
    for uuid in draw(st.lists(st.sampled_from(UUIDS), unique=True)):
        if draw(st.booleans()):
            values[f"{uuid}-uuid"] = advertisement(ManualClock().now())
        if role := draw(ROLES):
            values[f"{uuid}-role"] = role
        if meta := draw(METAS):
            values[f"{uuid}-meta"] = meta.value()
    for key in ("leader-auto", "ip-master", "token-nodetoken"):
        if draw(st.booleans()):
            values[key] = draw(st.sampled_from([*UUIDS, "x", ""]))
    return values


TRUTHS = st.builds(
    LocalTruth,
    held=st.none() | st.builds(Held, st.sampled_from([Role.MASTER, Role.HA, Role.WORKER]), st.just("kairos")),
    deployed=st.booleans(),
    busy=st.booleans(),
    ip=st.sampled_from(["", "10.1.0.4"]),
    master_ip=st.sampled_from(["", "10.1.0.4"]),
    node_token=st.sampled_from([None, "K10"]),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(ledgers(), min_size=1, max_size=4),
    TRUTHS,
    st.sampled_from([None, Role.MASTER, Role.WORKER, Role.NONE]),
    st.booleans(),
    st.integers(0, 3),
)
def test_rules_that_never_break(seen, truth, forced, ha, additional):
    clock = ManualClock()
    engine = RolesEngine(
        RoleSettings(NodeUuid("me"), forced=forced, ha=ha, additional_masters=additional if ha else 0),
        random.Random(1),
    )
    for values in [*seen, *seen]:
        step = engine.step(view_of(values), truth, clock.advance(0.7))
        assert step.wake is None or step.wake >= clock.now().mono  # never a busy loop
        for effect in step.effects:
            if isinstance(effect, Configure):
                assert not truth.busy
                assert effect.role.executable
                if not effect.role.first:
                    assert effect.join_token
                    assert effect.server_ip
                if truth.held is not None:
                    assert effect.role is truth.held.role
            if isinstance(effect, PutKey) and effect.key == "me-role" and truth.held is not None:
                assert effect.value == str(truth.held.role)
