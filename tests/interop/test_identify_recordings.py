"""Identify messages and first gossip RPCs of every EdgeVPN command, and its answers to odd RPCs (identify.json).

Our code reads every one of them, writes the same bytes, and answers the recorder's odd RPCs as EdgeVPN did. Where we
differ on purpose:

==========================================  ==========================================================================
difference                                  reason
==========================================  ==========================================================================
no signed peer record (field 8)             optional; peers then take the plain addresses, which we vouch for by our
                                            connection anyway
QUIC, WebTransport, WebRTC addresses are    we dial and listen on TCP; a Go node has TCP beside them. Addresses with
read and left out                           certificate hashes we could not even write
no ``/meshsub/1.3.0``, ``/floodsub/1.0.0``  1.3.0 adds extensions that EdgeVPN never sends; floodsub nobody here speaks
subscriptions without fields 3 and 4        partial messages, which are always off; v0.30.2 does not send them either
no IDONTWANT for what we author ourselves   it saves nobody anything: the message follows at once
==========================================  ==========================================================================
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from provider_kairos.errors import PeerError
from provider_kairos.ids import PeerId
from provider_kairos.mesh import identify
from provider_kairos.mesh.addresses import parse_endpoint
from provider_kairos.mesh.gossip_router import GossipRouter, Send
from provider_kairos.mesh.gossip_wire import Rpc, decode_rpc, encode_rpc

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "recordings" / "identify.json").read_text())
RUNS = [
    pytest.param(run, id=f"{number}-{run['version']}-{run['command'].replace(' ', '_')}")
    for number, run in enumerate(RECORDED["runs"])
]
LISTEN, SIGNED_PEER_RECORD = 2, 8


def fields(data: bytes) -> list[tuple[int, bytes]]:
    """The length-delimited fields of a protobuf, in order; identify has no other kind."""
    found, at = [], 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        tag = varint()
        assert tag & 7 == 2
        length = varint()
        found.append((tag >> 3, data[at : at + length]))
        at += length
    return found


def body(run: dict[str, Any]) -> bytes:
    """The identify message without its length."""
    raw = bytes.fromhex(run["identify_raw"])
    return raw[2:] if raw[0] > 127 else raw[1:]


def test_the_recording_is_complete():
    assert len(RUNS) == 36
    assert {len(probe) for probe in RECORDED["probes"].values()} == {28, 26}


@pytest.mark.parametrize("run", RUNS)
def test_every_identify_message_is_understood(run: dict[str, Any]):
    read = identify.decode(body(run))
    said = run["identify"]
    assert read.agent == said["agent_version"] == "edgevpn"
    assert read.protocols == set(said["protocols"])
    dialable = [parsed[0] for text in said["listen_addrs"] if (parsed := parse_endpoint(text)) is not None]
    assert list(read.endpoints) == dialable
    assert dialable


@pytest.mark.parametrize("run", RUNS)
def test_we_would_say_the_same_bytes(run: dict[str, Any]):
    said = run["identify"]
    parts = fields(body(run))
    assert [number for number, _ in parts] == said["field_order"]
    addresses = iter(said["listen_addrs"])
    ours_to_say = [part for part in parts if part[0] != LISTEN or "/certhash/" not in next(addresses)]
    ours = identify.encode(
        bytes.fromhex(said["public_key"]),
        [address for address in said["listen_addrs"] if "/certhash/" not in address],
        said["protocols"],
        said["agent_version"],
        said["observed_addr"],
    )
    written = fields(ours[2:] if ours[0] > 127 else ours[1:])
    assert written == [part for part in ours_to_say if part[0] != SIGNED_PEER_RECORD]


@pytest.mark.parametrize("run", RUNS)
def test_first_rpcs_are_understood_and_written_alike(run: dict[str, Any]):
    assert run["first_rpcs"][0]["subs"]
    for recorded in run["first_rpcs"]:
        is_like(recorded)


def is_like(recorded: dict[str, Any]) -> None:
    """One recorded RPC: read as the recorder did, and written to the same bytes where all of it has a meaning for us."""
    raw = bytes.fromhex(recorded["raw"])
    rpc = decode_rpc(raw)
    assert rpc.refused == 0
    if "subs" in recorded:
        assert list(rpc.subscriptions) == [(each["subscribe"], each["topic"]) for each in recorded["subs"]]
        assert len(rpc.messages) == recorded["n_pub"]
        wanted = {kind: ids(recorded["ctl"], kind) for kind in ("idontwant", "iwant")}
        assert {"idontwant": list(rpc.idontwant), "iwant": list(rpc.iwant)} == wanted
        prunes = [(each["topic"], each["backoff"]) for each in recorded["ctl"] if each["kind"] == "prune"]
        assert [(each.topic, each.backoff) for each in rpc.prune] == prunes
    written = encode_rpc(rpc)
    if rpc.subscriptions and recorded.get("subs", [{}])[0].get("fields") == [1, 2, 3, 4]:
        assert written == raw.replace(bytes.fromhex("18002000"), b"").replace(b"\x0a\x28\x08\x01", b"\x0a\x24\x08\x01")
    else:
        assert written == raw


def ids(controls: list[dict[str, Any]], kind: str) -> list[bytes]:
    return [bytes.fromhex(each) for control in controls if control["kind"] == kind for each in control["ids"]]


KINDS = [
    pytest.param(kind, text, id=f"{who}-{kind}")
    for who, counts in RECORDED["gossip_counts"].items()
    for kind, text in counts["one_rpc_of_each_kind_hex"].items()
]


@pytest.mark.parametrize(("kind", "text"), KINDS)
def test_one_rpc_of_each_kind_is_written_alike(kind: str, text: str):
    raw = bytes.fromhex(text)
    rpc = decode_rpc(raw)
    assert getattr(rpc, kind)
    assert encode_rpc(rpc) == raw


# --- the recorder's odd RPCs, said to us ----------------------------------------------------------------------------


@pytest.mark.parametrize("version", RECORDED["probes"])
def test_our_router_answers_odd_rpcs_as_edgevpn_did(version: str):
    """The recorder's lines are given to our router, EdgeVPN's answers are what it must say.

    A second passes between the lines, and no heartbeat. Messages of its own that EdgeVPN offered or announced meanwhile
    are no answers.
    """
    events = RECORDED["probes"][version]
    topic = next(event["subs"][0]["topic"] for event in events if event.get("subs"))
    router = GossipRouter(PeerId(events[0]["peer"]), random.Random(1))
    recorder = author_of(events)
    now = 1000.0
    router.join(topic, now)
    router.add_peer(recorder, (1, 2), now, outbound=False)
    router.handle(recorder, Rpc(subscriptions=((True, topic),), graft=(topic,)), now)
    resets = 0
    for event, answers in by_action(events):
        now += 1
        try:
            effects = router.handle(recorder, decode_rpc(bytes.fromhex(event["rpc"])), now)
        except PeerError:
            resets += 1
            continue
        said = [effect.rpc for effect in effects if isinstance(effect, Send)]
        theirs = [decode_rpc(bytes.fromhex(each["raw"])) for each in answers]
        assert controls(said) == controls(theirs), event["text"]
    assert resets == 1  # the RPC that is no protobuf, where EdgeVPN reset its stream
    assert router.counters["malformed_message"] == 1  # the unsigned one
    assert router.topics == {topic}


def author_of(events: list[dict[str, Any]]) -> PeerId:
    """The recorder's identity, from the message that it signed."""
    raw = next(event["rpc"] for event in events if event.get("text") == "a signed message that is no envelope")
    return decode_rpc(bytes.fromhex(raw)).messages[0].author


def by_action(events: list[dict[str, Any]]) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Each RPC of the recorder's with what EdgeVPN said before the next one; its own gossip is left out."""
    found: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    for event in events:
        if event["ev"] == "action" and "rpc" in event:
            found.append((event, []))
        elif event["ev"] == "rpc" and found and "kinds" not in event:
            found[-1][1].append(event)
    return found


def controls(rpcs: list[Rpc]) -> set[Any]:
    """What was said of meshes and messages, whatever the order."""
    said: set[Any] = set()
    for rpc in rpcs:
        said |= {("prune", prune.topic, prune.backoff) for prune in rpc.prune}
        said |= {("iwant", each) for each in rpc.iwant}
        said |= {("graft", topic) for topic in rpc.graft}
    return said
