"""The bootstrap loop: whole clusters of it over one ledger, in virtual time."""

from __future__ import annotations

import json
import logging

import pytest
import trio
import trio.testing

from provider_kairos.clock import ManualClock
from provider_kairos.errors import ConfigError, HostError
from provider_kairos.provider.configure import TOKEN_FILE
from provider_kairos.provider.disk import ROLE_FILE, SENTINEL
from provider_kairos.provider.last_words import LAST_WORDS, parse
from provider_kairos.provider.machine import Crash
from provider_kairos.provider.status import STATUS_FILE


def roles(boxes):
    return {b.name: json.loads(b.machine.files[ROLE_FILE])["role"] for b in boxes if ROLE_FILE in b.machine.files}


async def until(condition, limit=60.0):
    with trio.fail_after(limit):
        while not condition():  # noqa: ASYNC110  # conditions over fakes have no event
            await trio.sleep(0.05)


def formed(boxes):
    return all(SENTINEL in b.machine.files for b in boxes)


def status(box):
    return json.loads(box.machine.files[STATUS_FILE])


def test_three_boxes_form_a_cluster_within_the_aim(boxes, in_time):
    three = boxes(3)

    async def main():
        async with trio.open_nursery() as nursery:
            for box in three:
                nursery.start_soon(box.run, nursery)
            await until(lambda: formed(three))
            await trio.sleep(1)
            nursery.cancel_scope.cancel()

    in_time(main)
    assert sorted(roles(three).values()) == ["master", "worker", "worker"]
    for box in three:
        phases = {p["name"]: p["seconds"] for p in status(box)["phases"]}
        # three settles of a second each; the rest is the product's start and the lease
        assert phases["role"] <= 4
        assert status(box)["configured"]
        assert status(box)["waiting"] == []


def test_joiners_get_token_and_address_in_their_environment(boxes, in_time):
    two = boxes(2)

    async def main():
        async with trio.open_nursery() as nursery:
            for box in two:
                nursery.start_soon(box.run, nursery)
            await until(lambda: formed(two))
            nursery.cancel_scope.cancel()

    in_time(main)
    first = next(b for b in two if roles(two)[b.name] == "master")
    worker = next(b for b in two if b is not first)
    env = worker.machine.files["/etc/sysconfig/k3s-agent"]
    assert f"K10token-of-{first.name}" in env
    assert first.links.ips["edgevpn0"] in env
    assert worker.machine.modes["/etc/sysconfig/k3s-agent"] == 0o600
    assert "k3s-agent" in worker.machine.active
    assert "k3s-agent" in worker.machine.enabled


def test_the_order_of_a_first_masters_steps(boxes, p2p, in_time):
    (box,) = boxes(1, p2p("  minimum_nodes: 1\n"))

    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.run, nursery)
            await until(lambda: formed([box]))
            nursery.cancel_scope.cancel()

    in_time(main)
    done = [d for d in box.machine.done if "/run/" not in d and "edgevpn" not in d]
    assert done == [
        "daemon-reload",
        f"write {ROLE_FILE}",
        "stage provider-kairos.bootstrap.before.master",
        "write /etc/sysconfig/k3s",
        "write /etc/systemd/system/k3s.service.d/override.conf",
        "daemon-reload",
        "start k3s",
        "enable k3s",
        "stage provider-kairos.bootstrap.after.master",
        f"write {SENTINEL}",
    ]
    keys = [key for _, key, _ in box.ledger.writes]
    assert keys.index("token-nodetoken") < keys.index("ip-master")


def test_ha_gives_additional_masters_and_workers(boxes, p2p, in_time):
    five = boxes(5, p2p("  auto: {ha: {master_nodes: 2}}\n"))

    async def main():
        async with trio.open_nursery() as nursery:
            for box in five:
                nursery.start_soon(box.run, nursery)
            await until(lambda: formed(five))
            nursery.cancel_scope.cancel()

    in_time(main)
    assert sorted(roles(five).values()) == ["master/clusterinit", "master/ha", "master/ha", "worker", "worker"]


def test_a_lone_box_says_what_is_missing(boxes, in_time, caplog):
    (box,) = boxes(1)
    caplog.set_level(logging.INFO, "provider_kairos")

    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.run, nursery)
            await trio.sleep(30)
            nursery.cancel_scope.cancel()

    in_time(main)
    assert roles([box]) == {}
    said = [w["text"] for w in status(box)["waiting"]]
    assert said == ["waiting for 1 more node: 1 of 2 seen"]
    assert caplog.text.count("waiting for 1 more node") == 1


def test_no_virtual_ip_is_a_reason(boxes, p2p, in_time):
    (box,) = boxes(1, p2p("  minimum_nodes: 1\n"), ip_after=1e6)

    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.run, nursery)
            await trio.sleep(20)
            nursery.cancel_scope.cancel()

    in_time(main)
    assert [w["code"] for w in status(box)["waiting"]] == ["no-virtual-ip"]


def test_power_cut_of_all_keeps_every_role_even_with_an_empty_ledger(boxes, in_time):
    three = boxes(3)
    before = {}

    async def life(seconds):
        async with trio.open_nursery() as nursery:
            for box in three:
                nursery.start_soon(box.run, nursery)
            await until(lambda: formed(three))
            await trio.sleep(seconds)
            nursery.cancel_scope.cancel()

    async def main():
        await life(5)
        before.update(roles(three))
        three[0].ledger.texts.clear()
        three[0].ledger.put_plain("healthcheck", "x", '"-"')
        for box in three:
            box.machine.done.clear()
        await life(20)

    in_time(main)
    assert roles(three) == before
    ledger = three[0].ledger.texts["kairos"]
    assert {"token-nodetoken", "ip-master", "master-kubeconfig", "leader-auto"} <= set(ledger)
    for box in three:
        assert not [d for d in box.machine.done if "stage" in d or "start k3s" in d]


@pytest.mark.parametrize("role", ["master", "worker"])
def test_a_crash_after_any_change_resumes_to_the_same_end(boxes, p2p, in_time, role):
    """The machine dies before each of its changes in turn, once, and starts again."""
    point, changes = 0, 1
    while point < changes:
        changes = crash_once(boxes(2, p2p()), p2p, in_time, role, point)
        point += 1
    assert point > 10


def crash_once(pair, p2p, in_time, role, point):
    """Crash before change number ``point``; the number of changes that a whole life has."""
    pair[0].config = p2p("  role: master\n")
    pair[1].config = p2p("  role: worker\n")
    victim, other = pair if role == "master" else reversed(pair)
    victim.machine.crash_after = point

    async def life(box):
        async with trio.open_nursery() as nursery:
            await box.run(nursery)

    async def crashing(box):
        try:
            await life(box)
        except* Crash:
            box.machine.crash_after = None
        await life(box)

    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(life, other)
            nursery.start_soon(crashing, victim)
            await until(lambda: formed(pair))
            nursery.cancel_scope.cancel()

    in_time(main)
    assert roles(pair) == {"box1": "master", "box2": "worker"}
    assert "k3s" in pair[0].machine.active
    assert "k3s-agent" in pair[1].machine.enabled
    return len([d for d in victim.machine.done if STATUS_FILE not in d])


def test_a_daemon_that_is_silent_for_a_while_is_waited_for(boxes, in_time):
    two = boxes(2)
    two[1].client.silent = True
    seen = []

    async def main():
        async with trio.open_nursery() as nursery:
            for box in two:
                nursery.start_soon(box.run, nursery)
            await trio.sleep(10)
            seen.append(status(two[1])["waiting"][0]["code"])
            two[1].client.silent = False
            await until(lambda: formed(two))
            nursery.cancel_scope.cancel()

    in_time(main)
    assert seen == ["daemon-silent"]
    assert sorted(roles(two).values()) == ["master", "worker"]


@pytest.mark.parametrize(
    ("spoil", "mend", "words"),
    [
        (
            lambda m: m.refuse.update({"start edgevpn@kairos": HostError("no systemctl")}),
            lambda m: m.refuse.clear(),
            "cannot set up the daemon: no systemctl",
        ),
        (
            lambda m: m.files.pop("/usr/bin/k3s"),
            lambda m: m.files.update({"/usr/bin/k3s": ""}),
            "cannot choose a distribution: no k8s binary is available",
        ),
        (
            lambda m: m.refuse.update({"start k3s": HostError("unit not found")}),
            lambda m: m.refuse.clear(),
            "cannot configure master: unit not found",
        ),
    ],
)
def test_what_the_machine_refuses_is_said_and_tried_again(boxes, p2p, in_time, spoil, mend, words):  # noqa: PLR0917  # a table's columns
    (box,) = boxes(1, p2p("  minimum_nodes: 1\n"))
    spoil(box.machine)
    seen: list[str] = []

    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.run, nursery)
            await trio.sleep(20)
            seen.extend(w["text"] for w in status(box)["waiting"])
            assert not formed([box])
            mend(box.machine)
            await until(lambda: formed([box]))
            nursery.cancel_scope.cancel()

    in_time(main)
    assert any(text.startswith(words) for text in seen), seen


def test_a_configuration_that_cannot_be_rendered_ends_the_loop_and_promises_nothing(boxes, p2p, in_time):
    two = boxes(2, p2p() + "k3s-agent: {replace_env: true, env: {A: b}}\n")
    two[0].config = p2p("  role: master\n")
    two[1].config = p2p("  role: worker\n") + "k3s-agent: {replace_env: true, env: {A: b}}\n"
    caught = []

    async def wrong():
        try:
            async with trio.open_nursery() as nursery:
                await two[1].run(nursery)
        except* ConfigError as group:
            caught.append(group)

    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(two[0].run, nursery)
            nursery.start_soon(wrong)
            await until(lambda: caught)
            nursery.cancel_scope.cancel()

    in_time(main)
    assert ROLE_FILE not in two[1].machine.files
    assert "replace_env" in status(two[1])["error"]
    assert [p["state"] for p in status(two[1])["phases"]].count("failed") == 1


def test_a_write_that_fails_is_repeated(boxes, in_time):
    two = boxes(2)
    two[0].client.refused = 5

    async def main():
        async with trio.open_nursery() as nursery:
            for box in two:
                nursery.start_soon(box.run, nursery)
            await until(lambda: formed(two))
            nursery.cancel_scope.cancel()

    in_time(main)
    assert formed(two)


def test_the_join_token_is_published_soon_after_k3s_wrote_it(boxes, p2p, in_time):
    (box,) = boxes(1, p2p("  minimum_nodes: 1\n"))
    box.machine.wait = 40.0
    times = {}

    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.run, nursery)
            await until(lambda: TOKEN_FILE in box.machine.files, limit=120)
            times["wrote"] = trio.current_time()
            await until(lambda: "token-nodetoken" in box.ledger.texts["kairos"])
            times["published"] = trio.current_time()
            nursery.cancel_scope.cancel()

    in_time(main)
    assert times["published"] - times["wrote"] <= 0.3


def test_no_secret_reaches_the_log(boxes, in_time, caplog):
    two = boxes(2)
    caplog.set_level(logging.DEBUG)

    async def main():
        async with trio.open_nursery() as nursery:
            for box in two:
                nursery.start_soon(box.run, nursery)
            await until(lambda: formed(two))
            nursery.cancel_scope.cancel()

    in_time(main)
    assert "Configuring k3s" in caplog.text
    assert "Configuring k3s worker" in caplog.text
    assert "K10token" not in caplog.text
    for box in two:
        assert "K10token" not in box.machine.files[STATUS_FILE]


def test_k3s_is_restarted_when_the_interface_was_made_anew(boxes, p2p, in_time):
    (box,) = boxes(1, p2p("  minimum_nodes: 1\n"))
    said: list[str] = []

    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.run, nursery)
            await until(lambda: formed([box]))
            await trio.sleep(2)
            assert status(box)["waiting"] == []
            box.machine.done.clear()
            box.links.renew()
            await until(lambda: "restart k3s" in box.machine.done)
            await trio.sleep(0.2)
            said.extend(w["code"] for w in status(box)["waiting"])
            await trio.sleep(3)
            nursery.cancel_scope.cancel()

    in_time(main)
    assert box.machine.done.count("restart k3s") == 1
    assert said == ["overlay-lost"]
    assert status(box)["waiting"] == []
    assert status(box)["ready"]


def test_an_interface_that_was_made_anew_while_the_provider_was_away_is_noticed(boxes, p2p, in_time):
    (box,) = boxes(1, p2p("  minimum_nodes: 1\n"))

    async def life(seconds):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.run, nursery)
            await until(lambda: formed([box]))
            await trio.sleep(seconds)
            nursery.cancel_scope.cancel()

    async def main():
        await life(3)
        box.links.renew()
        await life(3)

    in_time(main)
    assert box.machine.done.count("restart k3s") == 1


def test_a_restart_that_the_machine_refuses_is_tried_again(boxes, p2p, in_time):
    (box,) = boxes(1, p2p("  minimum_nodes: 1\n"))
    said: list[str] = []

    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.run, nursery)
            await until(lambda: formed([box]))
            await trio.sleep(2)
            box.machine.refuse["restart k3s"] = HostError("systemctl does not answer")
            box.links.renew()
            await trio.sleep(3)
            said.extend(w["code"] for w in status(box)["waiting"])
            box.machine.refuse.clear()
            await until(lambda: "restart k3s" in box.machine.done)
            nursery.cancel_scope.cancel()

    in_time(main)
    assert said == ["refused", "overlay-lost"]


def test_a_first_master_that_has_not_published_yet_is_restarted_too(boxes, p2p, in_time):
    (box,) = boxes(1, p2p("  minimum_nodes: 1\n"))
    box.machine.wait = 30.0

    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.run, nursery)
            await until(lambda: "k3s" in box.machine.active)
            await trio.sleep(2)
            box.links.renew()
            await until(lambda: "restart k3s" in box.machine.done, limit=5)
            nursery.cancel_scope.cancel()

    in_time(main)


def test_kubernetes_that_is_down_is_a_reason_before_and_after_it_was_up(boxes, p2p, in_time):
    (box,) = boxes(1, p2p("  minimum_nodes: 1\n"))
    texts, up = [], False
    box.machine.is_active = lambda service: up

    def note():
        texts.append([(w["code"], w["text"]) for w in status(box)["waiting"]])

    async def main():
        nonlocal up
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.run, nursery)
            await until(lambda: formed([box]))
            await trio.sleep(3)
            note()
            up = True
            await trio.sleep(3)
            note()
            up = False
            await trio.sleep(20)
            note()
            nursery.cancel_scope.cancel()

    in_time(main)
    down = "; its own log says why (journalctl -u k3s)"
    assert texts == [[("service-down", f"k3s is not up yet{down}")], [], [("service-down", f"k3s has stopped{down}")]]
    assert status(box)["ready"] is False


def test_links_that_cannot_be_watched_for_a_while_end_nothing(boxes, in_time):
    two = boxes(2)
    watch, failures = two[0].links.watch, [HostError("no buffer space")] * 2

    def refusing():
        if failures:
            raise failures.pop()
        return watch()

    two[0].links.watch = refusing

    async def main():
        async with trio.open_nursery() as nursery:
            for box in two:
                nursery.start_soon(box.run, nursery)
            await until(lambda: formed(two))
            nursery.cancel_scope.cancel()

    in_time(main)


def test_a_role_file_that_tells_no_role_is_said_and_nothing_is_configured(boxes, in_time):
    two = boxes(2)
    two[0].machine.files[ROLE_FILE] = "{"
    two[0].machine.modes[ROLE_FILE] = 0o600

    async def main():
        async with trio.open_nursery() as nursery:
            for box in two:
                nursery.start_soon(box.run, nursery)
            await trio.sleep(60)
            nursery.cancel_scope.cancel()

    in_time(main)
    assert two[0].machine.files[ROLE_FILE] == "{"
    assert "does not say which role" in status(two[0])["waiting"][0]["text"]
    assert not two[0].machine.active & {"k3s", "k3s-agent"}


def test_a_daemon_that_ends_again_and_again_is_quoted(boxes, in_time):
    (box,) = boxes(1)
    box.client.silent = True
    said: list[str] = []

    async def main():
        words = {
            "schema": 1,
            "unix": 1_700_000_000 + round(trio.current_time()),
            "message": "a file is in the way",
            "hint": "remove it",
        }
        box.machine.files[LAST_WORDS] = json.dumps(words)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.run, nursery)
            await trio.sleep(3)
            said.extend(w["text"] for w in status(box)["waiting"])
            box.client.silent = False
            await trio.sleep(3)
            nursery.cancel_scope.cancel()

    in_time(main)
    assert said == ["the mesh daemon ends again and again: a file is in the way (remove it)"]
    assert LAST_WORDS not in box.machine.files


def test_old_words_of_a_daemon_do_not_count():
    now = ManualClock().now()
    words = {"schema": 1, "unix": now.unix - 31, "message": "x", "hint": ""}
    assert parse(json.dumps(words), now) == ""
    assert parse(json.dumps(words | {"unix": now.unix - 29}), now) == "x"
    assert [parse(text, now) for text in (None, "", "{", "[]", '{"message": "x"}')] == [""] * 5
