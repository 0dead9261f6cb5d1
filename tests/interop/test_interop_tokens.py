"""The codec against 142 trials of EdgeVPN with odd tokens, its generator, and the topics that it announced."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from provider_kairos.errors import TokenError
from provider_kairos.token import codec, envelope, otp, seal

RECORDINGS = Path(__file__).parent / "recordings"


def records(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RECORDINGS / name).read_text().splitlines()]


TOKENS = records("tokens.jsonl")
TRIALS = [record for record in TOKENS if record["record"] == "token"]
GENERATED = [record for record in TOKENS if record["record"] == "generated"]

# What EdgeVPN runs with and we refuse on purpose: field, and why.
DELIBERATELY_REFUSED = {
    "dht interval 0": ("otp.dht.interval", "EdgeVPN panics as soon as the DHT is on; a token must not depend on flags"),
    "dht length 45": ("otp.dht.length", "likewise"),
    "no max_message_size": ("max_message_size", "EdgeVPN starts, announces its topic and never passes a message"),
    "max_message_size 0": ("max_message_size", "likewise"),
    "max_message_size -1": ("max_message_size", "likewise"),
    "max_message_size 100": ("max_message_size", "likewise"),
    "mdns of 64 letters": ("mdns", "no DNS label is that long: nodes of one network would never find each other"),
}


def refused(record: dict[str, Any]) -> bool:
    return record["exit"] is not None  # an error (1) or a panic (2); None means that it ran


def ident(record: dict[str, Any]) -> str:
    return f"{record['version'].split()[-1]}-{record['command']}-{record['name']}"


def test_the_recording_is_complete():
    assert (len(TRIALS), len(GENERATED)) == (142, 20)


def test_every_deliberate_difference_is_recorded():
    assert DELIBERATELY_REFUSED.keys() <= {record["name"] for record in TRIALS}


@pytest.mark.parametrize("record", TRIALS, ids=ident)
def test_accepts_and_refuses_what_edgevpn_does(record: dict[str, Any]):
    if refused(record) or record["name"] in DELIBERATELY_REFUSED:
        with pytest.raises(TokenError) as caught:
            codec.decode(record["token"])
        if not refused(record):
            assert caught.value.field == DELIBERATELY_REFUSED[record["name"]][0]
        assert "0123456789abcdef" not in str(caught.value)  # the secret of every trial
    else:
        codec.decode(record["token"])


RAN = [record for record in TRIALS if record.get("topics_seen") and record["name"] not in DELIBERATELY_REFUSED]


@pytest.mark.parametrize("record", RAN, ids=ident)
def test_derives_the_topic_that_edgevpn_announced_and_opens_its_message(record: dict[str, Any]):
    token = codec.decode(record["token"])
    unix = record["observed_unix_ns"] / 1e9
    # The stamp is from the end of the trial; with an interval of a few seconds several topics passed meanwhile.
    around = [otp.epoch_at(token, unix - back) for back in range(40)]
    assert set(record["topics_seen"]) <= {epoch.topic for epoch in around} | {
        otp.epoch_at(token, unix + ahead).topic for ahead in range(30)
    }
    opens = isinstance(record.get("explained_by"), dict) and record["explained_by"].get("message_opens")
    if opens and "first_message" in record:
        sealed = envelope.decode(record["first_message"].encode()).message
        assert any(_opens(epoch, sealed) for epoch in around)


def _opens(epoch: otp.Epoch, sealed: str) -> bool:
    try:
        return bool(seal.unseal(epoch.seal_key, sealed))
    except seal.SealError:
        return False


@pytest.mark.parametrize("record", GENERATED, ids=lambda record: " ".join(record["arguments"]))
def test_generated_tokens_read_and_write_byte_for_byte(record: dict[str, Any]):
    if record["arguments"][-1] == "0":  # EdgeVPN's generator makes a token that EdgeVPN panics on
        with pytest.raises(TokenError, match=r"otp\.crypto\.interval: 0 seconds"):
            codec.decode(record["stdout"])
        return
    token = codec.decode(record["stdout"])
    assert codec.to_yaml(token) == record["yaml"]
    assert codec.encode(token) == record["stdout"].strip()
    values = record["values"]
    for name, settings in (("dht", token.dht), ("crypto", token.crypto)):
        assert values["otp"][name] == {
            "interval": str(settings.interval),
            "key": settings.key,
            "length": str(settings.length),
        }
    assert (token.room, token.rendezvous, token.mdns) == (values["room"], values["rendezvous"], values["mdns"])
    assert str(token.max_message_size) == values["max_message_size"]


def otp_records(kind: str) -> list[tuple[codec.NetworkToken, dict[str, Any]]]:
    token, found = None, []
    for record in records("otp.jsonl"):
        if record["record"] == "token":
            token = codec.decode(record["token"])
        elif record["record"] == kind:
            assert token is not None
            found.append((token, record))
    return found


def test_otp_topics_as_subscribed():
    subscriptions = otp_records("subscription")
    assert len(subscriptions) == 162
    for token, record in subscriptions:
        offset = record["step_offset"]
        unix = record["t"] / 1e9 + offset * min(token.crypto.interval, 2**32)
        assert otp.epoch_at(token, unix).topic == record["topic"], record


def test_otp_rendezvous_as_announced():
    rendezvous = otp_records("rendezvous")
    assert len(rendezvous) == 18
    for token, record in rendezvous:
        unix = datetime.fromisoformat(record["time"]).timestamp()
        for point, offset in zip(record["points"], record["step_offsets"], strict=True):
            assert otp.rendezvous_at(token, unix + offset * min(token.dht.interval, 2**32)) == point, record
