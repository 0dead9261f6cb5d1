"""One node's engine: what it writes, when it configures, what it waits for (spec/provider.md 4.4-4.12)."""

from __future__ import annotations

import base64
import random

from provider_kairos.clock import ManualClock
from provider_kairos.ledger.leader import fnv1a32
from provider_kairos.roles.effects import Configure, PutKey
from provider_kairos.roles.engine import RolesEngine, RoleSettings
from provider_kairos.roles.model import Held, LocalTruth, Meta, Role, advertisement, format_time, view_of


class Node:
    """An engine over a small ledger that shows every write at once."""

    def __init__(self, uuid="me", **settings):
        self.clock = ManualClock()
        self.values = {}
        self.engine = RolesEngine(RoleSettings(uuid, **settings), random.Random(1))
        self.truth = LocalTruth(ip="10.1.0.7", master_ip="10.1.0.7")

    def others(self, *uuids):
        for uuid in uuids:
            self.values[f"{uuid}-uuid"] = advertisement(self.clock.now())

    def step(self, seconds=0.0, *, shown=True):
        now = self.clock.advance(seconds)
        result = self.engine.step(view_of(self.values, {}), self.truth, now)
        if shown:
            self.values |= {e.key: e.value for e in result.effects if isinstance(e, PutKey)}
        return result

    def keys(self, result):
        return [e.key for e in result.effects if isinstance(e, PutKey)]


def configure(result):
    return [e for e in result.effects if isinstance(e, Configure)]


def codes(result):
    return [w.code for w in result.waiting]


def test_at_once_and_then_every_minute_it_advertises():
    node = Node()
    assert "me-uuid" in node.keys(node.step())
    assert "me-uuid" not in node.keys(node.step(30))
    assert "me-uuid" in node.keys(node.step(30))
    assert node.values["me-uuid"] == {"Time": format_time(node.clock.now().unix_ns)}


def test_what_a_node_holds_is_written_before_it_advertises():
    node = Node()
    node.truth = LocalTruth(held=Held(Role.WORKER, "kairos", "g"), deployed=True, ip="10.1.0.7")
    keys = node.keys(node.step())
    assert keys.index("me-meta") < keys.index("me-uuid")
    assert keys.index("me-role") < keys.index("me-uuid")


def test_a_ledger_that_lost_our_advertisement_gets_it_again():
    node = Node()
    node.step()
    node.values.clear()
    assert "me-uuid" in node.keys(node.step(6))


def test_a_write_is_repeated_while_the_ledger_does_not_show_it():
    node = Node()
    assert "me-ip" in node.keys(node.step(shown=False))
    assert "me-ip" not in node.keys(node.step(1, shown=False))
    assert "me-ip" in node.keys(node.step(5, shown=False))


def test_a_write_that_failed_is_due_at_once():
    node = Node()
    node.step(shown=False)
    node.engine.lost("me-ip")
    node.engine.lost("me-uuid")
    assert {"me-ip", "me-uuid"} <= set(node.keys(node.step(0.1, shown=False)))


def test_the_choice_of_a_first_master_is_made_once_although_the_ledger_is_slow():
    node = Node()
    node.others("a", "b", "c")
    node.values["leader-auto"] = "me"
    node.step()
    given = []
    for _ in range(20):
        result = node.step(0.2, shown=False)
        given += [(e.key, e.value) for e in result.effects if isinstance(e, PutKey) and e.key.endswith("-role")]
    assert sorted(str(value) for _, value in given) == ["master", "worker", "worker", "worker"]
    assert len({key for key, _ in given}) == 4


def test_a_worker_waits_for_token_then_address_then_its_own_address():
    node = Node()
    node.others("a")
    node.values |= {"me-role": "worker", "leader-auto": "a", "a-role": "master"}
    node.truth = LocalTruth()
    assert codes(node.step()) == ["no-join-token"]
    node.values["token-nodetoken"] = "K10"
    assert codes(node.step()) == ["no-master-address"]
    node.values["ip-master"] = "10.1.0.1"
    assert codes(node.step()) == ["no-virtual-ip"]
    node.truth = LocalTruth(ip="10.1.0.7", master_ip="10.1.0.7")
    result = node.step()
    assert codes(result) == []
    assert configure(result) == [Configure(Role.WORKER, "", "10.1.0.1", "K10")]


def test_an_additional_master_never_starts_without_a_token():
    node = Node(ha=True, additional_masters=2)
    node.others("a")
    node.values |= {"me-role": "master/ha", "leader-auto": "a", "ip-master": "10.1.0.1"}
    for _ in range(50):
        assert configure(node.step(1)) == []


def test_a_token_of_an_earlier_founding_is_not_used():
    node = Node()
    node.others("a")
    node.values |= {"me-role": "worker", "a-role": "master", "token-nodetoken": "old", "ip-master": "10.1.0.1"}
    node.values["a-meta"] = Meta(held=Role.MASTER, generation="2").value()
    assert codes(node.step()) == ["no-join-token"]
    node.values["a-meta"] = Meta(held=Role.MASTER, generation="2", published=True).value()
    assert configure(node.step())[0].generation == "2"


def test_nothing_is_configured_twice_while_it_is_being_configured():
    node = Node()
    node.others("a")
    node.values |= {"me-role": "worker", "token-nodetoken": "K10", "ip-master": "10.1.0.1"}
    node.truth = LocalTruth(ip="10.1.0.7", master_ip="10.1.0.7", busy=True)
    assert configure(node.step()) == []


def test_a_role_on_disk_is_written_back_and_never_given_up():
    node = Node()
    node.others("a")
    node.truth = LocalTruth(held=Held(Role.MASTER, "kairos", "1"), deployed=True, ip="10.1.0.7", master_ip="10.1.0.7")
    node.step()
    node.values["me-role"] = "worker"
    result = node.step(1)
    assert PutKey("me-role", "master") in result.effects
    assert result.role is Role.MASTER
    assert configure(result) == []


def test_a_role_on_disk_that_was_not_finished_is_carried_out_again():
    node = Node()
    node.truth = LocalTruth(held=Held(Role.MASTER, "kairos", "7"), ip="10.1.0.7", master_ip="10.1.0.7")
    assert configure(node.step()) == [Configure(Role.MASTER, "7")]


def test_another_network_id_is_a_reason_and_nothing_is_written():
    node = Node()
    node.truth = LocalTruth(held=Held(Role.MASTER, "other", "1"), deployed=True, ip="10.1.0.7")
    result = node.step()
    assert codes(result) == ["other-network"]
    assert result.effects == ()


def test_first_master_publishes_token_kubeconfig_and_address():
    node = Node()
    node.truth = LocalTruth(
        held=Held(Role.MASTER, "kairos", "1"),
        busy=True,
        ip="10.1.0.7",
        master_ip="192.168.1.110",
        node_token="K10word",
        kubeconfig="server: https://127.0.0.1:6443 ~~~?",
    )
    node.step()
    assert node.values["token-nodetoken"] == "K10word"
    assert node.values["ip-master"] == "192.168.1.110"
    assert node.values["me-ip"] == "10.1.0.7"
    coded = node.values["master-kubeconfig"]
    assert not set(coded) & set("=+/")
    padded = coded + "=" * (-len(coded) % 4)
    assert base64.urlsafe_b64decode(padded).decode() == node.truth.kubeconfig
    node.step(1)
    assert node.values["me-meta"]["published"] is True


def test_of_two_first_masters_one_alone_publishes():
    node = Node()
    node.others("a")
    node.values |= {
        "a-role": "master",
        "a-meta": Meta(held=Role.MASTER, deployed=True, generation="0").value(),
        "token-nodetoken": "a's",
        "ip-master": "10.1.0.1",
    }
    node.truth = LocalTruth(
        held=Held(Role.MASTER, "kairos", "1"), deployed=True, ip="10.1.0.7", master_ip="10.1.0.7", node_token="mine"
    )
    node.step()
    assert node.values["token-nodetoken"] == "a's"
    assert node.values["ip-master"] == "10.1.0.1"


def test_an_additional_master_publishes_only_where_nobody_does():
    node = Node(ha=True)
    node.truth = LocalTruth(
        held=Held(Role.HA, "kairos", "1"), deployed=True, ip="10.1.0.7", master_ip="10.1.0.7", node_token="K10"
    )
    node.step()
    assert node.values["token-nodetoken"] == "K10"
    node.values["ip-master"] = "10.1.0.1"
    node.step(1)
    assert node.values["ip-master"] == "10.1.0.1"


def test_a_forced_master_needs_nobody_and_is_clusterinit_with_ha():
    node = Node(forced=Role.MASTER, ha=True)
    assert configure(node.step()) == []
    assert node.values["me-role"] == "master/clusterinit"
    assert configure(node.step(1.1))[0].role is Role.CLUSTER_INIT


def test_a_forced_master_founds_no_second_cluster_beside_a_first_master():
    node = Node(forced=Role.MASTER)
    node.others("a")
    node.values |= {"a-role": "master", "a-meta": Meta(held=Role.MASTER, deployed=True, generation="1").value()}
    for _ in range(30):
        result = node.step(1)
        assert configure(result) == []
        assert codes(result) == ["forced-beside-first"]
    assert "a is first master" in result.waiting[0].text()


def test_a_forced_master_founds_again_where_the_old_first_master_is_gone():
    node = Node(forced=Role.MASTER)
    node.others("a")
    node.values |= {"a-role": "master", "a-meta": Meta(held=Role.MASTER, deployed=True, generation="1").value()}
    node.step()
    assert configure(node.step(16 * 60)) == []  # it looks around for a moment first
    assert configure(node.step(1.1))[0].role is Role.MASTER


def test_of_two_forced_masters_that_start_together_one_founds():
    here, there = Node("a", forced=Role.MASTER), Node("b", forced=Role.MASTER)
    there.values = here.values
    founded = []
    for _ in range(40):
        founded += [n.engine.settings.uuid for n in (here, there) if configure(n.step(0.1))]
    assert len(set(founded)) == 1


def test_a_forced_master_waits_for_its_address_before_it_trusts_the_silence():
    node = Node(forced=Role.MASTER)
    node.truth = LocalTruth()
    node.step()
    assert codes(node.step(5)) == ["no-virtual-ip"]
    node.truth = LocalTruth(ip="10.1.0.7", master_ip="10.1.0.7")
    assert codes(node.step()) == ["confirming-founding"]
    assert configure(node.step(1.1))


def test_a_node_whose_clock_is_an_hour_ahead_is_not_waited_for_as_leader():
    # The hash of the node with the wrong clock is the highest of the three.
    wrong = max(("a", "b", "c"), key=lambda uuid: fnv1a32(uuid.encode()))
    right = [Node(uuid) for uuid in ("a", "b", "c") if uuid != wrong]
    values = right[0].values
    right[1].values = values
    values[f"{wrong}-uuid"] = advertisement(right[0].clock.now().plus(3600))
    founded = []
    for _ in range(80):
        founded += [n.engine.settings.uuid for n in right if configure(n.step(0.1))]
    assert len(set(founded)) == 1


def test_clocks_that_differ_are_a_reason_on_both_sides():
    behind, ahead = Node("a"), Node("b")
    behind.values["b-uuid"] = advertisement(behind.clock.now().plus(1200))
    assert "clocks-differ" in codes(behind.step())
    assert "20 minutes ahead of" in behind.step().waiting[-1].text()
    ahead.values["a-uuid"] = advertisement(ahead.clock.now().plus(-1200))
    assert "clocks-differ" not in codes(ahead.step())  # a node that is gone looks the same
    ahead.clock.advance(60)
    ahead.values["a-uuid"] = advertisement(ahead.clock.now().plus(-1200))
    assert "20 minutes behind" in ahead.step().waiting[-1].text()
    behind.truth = LocalTruth(held=Held(Role.WORKER, "kairos", "g"), deployed=True, ip="10.1.0.7")
    assert codes(behind.step()) == []


def test_a_forced_worker_waits_for_publication_without_a_leader():
    node = Node(forced=Role.WORKER)
    assert codes(node.step()) == ["no-join-token"]
    assert node.values["me-role"] == "worker"


def test_role_none_is_published_and_never_configured():
    node = Node(forced=Role.NONE)
    assert codes(node.step()) == ["role-none"]
    assert node.values["me-role"] == "none"


def test_one_node_is_enough_when_told_so():
    node = Node(minimum_nodes=1)
    done = []
    for _ in range(40):
        done += configure(node.step(0.1))
        if done:
            break
    assert done[0].role is Role.MASTER
    assert done[0].generation
    assert node.values["leader-auto"] == "me"


def test_reasons_on_the_way():
    node = Node()
    assert [w.text() for w in node.step().waiting] == ["waiting for 1 more node: 1 of 2 seen"]
    node.others("a")
    node.values["leader-auto"] = "a"
    assert [w.text() for w in node.step(1).waiting] == ["leader a has not assigned a role yet"]


def test_every_reason_is_a_sentence_and_a_record():
    node = Node()
    record = node.step().waiting[0].as_dict()
    assert record == {
        "code": "more-nodes",
        "text": "waiting for 1 more node: 1 of 2 seen",
        "seen": 1,
        "needed": 2,
    }


def test_no_secret_in_any_repr():
    node = Node()
    node.truth = LocalTruth(
        held=Held(Role.MASTER, "kairos", "1"), ip="1.2.3.4", master_ip="1.2.3.4", node_token="K10x", kubeconfig="kc-x"
    )
    result = node.step()
    for text in (repr(result), repr(node.truth), repr(view_of(node.values))):
        assert "K10x" not in text
        assert "kc-x" not in text


def test_two_clusters_under_one_network_id_are_said_on_both_sides_and_nobody_changes():
    for mine, theirs in (("1", "2"), ("2", "1")):
        node = Node()
        node.others("a", "b")
        node.values |= {
            "a-role": "master",
            "a-meta": Meta(held=Role.MASTER, deployed=True, generation=theirs).value(),
            "b-meta": Meta(held=Role.WORKER, deployed=True).value(),  # by a Go master: no generation, no stranger
        }
        node.truth = LocalTruth(held=Held(Role.MASTER, "kairos", mine), deployed=True, ip="10.1.0.7")
        result = node.step()
        assert codes(result) == ["two-clusters"]
        assert "a belongs to another cluster" in result.waiting[0].text()
        assert result.role is Role.MASTER
        assert configure(result) == []


def test_nodes_of_an_earlier_founding_that_are_gone_are_no_second_cluster():
    node = Node()
    node.others("a")
    node.values["a-meta"] = Meta(held=Role.MASTER, deployed=True, generation="1").value()
    node.truth = LocalTruth(held=Held(Role.MASTER, "kairos", "2"), deployed=True, ip="10.1.0.7")
    assert codes(node.step()) == ["two-clusters"]
    assert codes(node.step(16 * 60)) == []
