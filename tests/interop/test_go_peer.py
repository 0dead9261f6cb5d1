"""Our mesh and daemon against the Go peer: every layer of the checklist (spec/edgevpn.md 16), either side dialling."""

from __future__ import annotations

from provider_kairos.token.codec import encode, generate
from provider_kairos.token.otp import epoch_at


def test_two_go_peers(go_peer):
    token = generate()
    one, two = (
        go_peer(token=encode(token), ledger={"ownership": "enforce", "sync": 1, "heartbeat": 1}) for _ in range(2)
    )
    epoch = epoch_at(token, 1_700_000_000)
    assert one.do("derived", unix=1_700_000_000)["topic"] == epoch.topic
    one.do("connect", addr=two.addrs[0])
    one.event("subscribed", peer=two.id)
    two.event("subscribed", peer=one.id)
    one.do("put", bucket="a", key="b", value="c")
    two.until(lambda: two.value("a", "b") == "c", "x")
    one.until(lambda: len(one.ledger()["healthcheck"]) == 2, "heartbeats")
