"""Which connections go first when there are too many, and who is never sent away."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from provider_kairos.mesh.connection_limits import Candidate, ConnectionLimits, Standing, to_make_room, to_trim

STRANGER, ON_TOPIC, MEMBER = Standing
LIMITS = ConnectionLimits(low=2, high=4, grace=10)


def held(name, standing=STRANGER, host="192.0.2.1", age=100.0, *, outbound=False, idle=True, exempt=False):
    return Candidate(name, standing, host, age, outbound, idle, exempt)


def test_nothing_goes_up_to_the_high_mark():
    assert to_trim([held(name) for name in "abcd"], LIMITS) == []
    assert len(to_trim([held(name) for name in "abcde"], LIMITS)) == 3


def test_strangers_go_before_peers_on_the_topic_and_members_never():
    everybody = [
        held("member", MEMBER),
        held("topic", ON_TOPIC),
        held("stranger", STRANGER, age=1000, idle=False, outbound=True),
        held("second", MEMBER),
        held("third", MEMBER),
    ]
    assert to_trim(everybody, LIMITS) == ["stranger", "topic"]


def test_the_young_are_spared_and_so_are_exempt_addresses():
    everybody = [held("young", age=9), held("old"), held("exempt", exempt=True), *(held(n, MEMBER) for n in "abc")]
    assert to_trim(everybody, LIMITS) == ["old"]


def test_the_most_crowded_address_pays_first_until_it_is_no_longer_that():
    crowd = [held(f"c{n}", host="198.51.100.1", age=50 + n) for n in range(3)]
    alone = [held("alone", host="192.0.2.9", age=20), held("other", host="192.0.2.8", age=30)]
    assert to_trim([*alone, *crowd], LIMITS) == ["c0", "c1", "alone"]


def test_idle_ones_go_first_then_inbound_then_the_youngest():
    limits = ConnectionLimits(low=0, high=0, grace=0)
    everybody = [
        held("busy", "", "a", idle=False),
        held("dialled", "", "b", outbound=True),
        held("old", "", "c", age=200),
        held("new", "", "d", age=100),
    ]
    assert to_trim(everybody, limits) == ["new", "old", "dialled", "busy"]


def test_a_newcomer_takes_the_place_of_the_oldest_stranger_of_the_fullest_address():
    crowd = [held(f"c{n}", host="198.51.100.1", age=n) for n in range(3)]
    assert to_make_room([held("lonely", age=500), *crowd, held("m", MEMBER, age=900)]) == "c2"
    assert to_make_room([held("m", MEMBER), held("x", exempt=True)]) is None


candidates = st.builds(
    held,
    st.integers(),
    st.sampled_from(Standing),
    st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1"]),
    st.floats(0, 1e4),
    outbound=st.booleans(),
    idle=st.booleans(),
    exempt=st.booleans(),
)


@given(
    st.lists(candidates, max_size=30, unique_by=lambda each: each.connection), st.integers(0, 10), st.integers(0, 10)
)
def test_trimming_reaches_the_low_mark_or_has_nobody_left_to_send_away(everybody, low, more):
    limits = ConnectionLimits(low=low, high=low + more, grace=10)
    gone = to_trim(everybody, limits)
    assert len(gone) == len(set(gone))
    by_name = {each.connection: each for each in everybody}
    assert not any(by_name[name].spared or by_name[name].age < 10 for name in gone)
    left = len(everybody) - len(gone)
    spare = [each for each in everybody if each.connection not in gone and not each.spared and each.age >= 10]
    assert not gone or left >= low
    assert left <= limits.high or not spare
    assert not gone or left == low or not spare
