"""Bootstrap peers behind names: found, bounded, remembered; and what users write."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from provider_kairos.errors import ConfigError, UnreachableError
from provider_kairos.mesh.bootstrap import DEFAULT_PEERS, MAX_NAMES, REMEMBER, Bootstrap, parse_bootstrap

ONE = "QmNnooDu7bfjPFoTZYxMNLWUQJyrVwtbZg5gBMjTezGAJN"
TWO = "QmQCU2EcMqAqQPR2i9bChDtGNJchTbq5TbXJJ16u19uLTa"


class Dns:
    def __init__(self, **records):
        self.records = {name.replace("__", "."): texts for name, texts in records.items()}
        self.asked = []

    async def __call__(self, name):
        self.asked.append(name)
        await trio.lowlevel.checkpoint()
        texts = self.records.get(name.removeprefix("_dnsaddr."))
        if texts is None:
            raise UnreachableError("no such name")
        return texts


def peers(bootstrap, times=1, gap=0.0):
    async def main():
        for _ in range(times - 1):
            await bootstrap.peers()
            await trio.sleep(gap)
        found = await bootstrap.peers()
        return {peer: [str(each) for each in endpoints] for peer, endpoints in found.items()}

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_names_lead_to_addresses_of_that_peer_alone():
    dns = Dns(
        boot__example=[
            f"dnsaddr=/dnsaddr/one.example/p2p/{ONE}",
            f"dnsaddr=/dnsaddr/two.example/p2p/{TWO}",
            "unrelated text",
            "dnsaddr=nonsense",
        ],
        one__example=[
            f"dnsaddr=/ip4/192.0.2.1/tcp/4001/p2p/{ONE}",
            f"dnsaddr=/ip4/192.0.2.1/udp/4001/quic-v1/p2p/{ONE}",
            f"dnsaddr=/dns4/one.example/tcp/443/p2p/{ONE}",
            f"dnsaddr=/ip4/192.0.2.66/tcp/4001/p2p/{TWO}",
            "dnsaddr=/ip4/192.0.2.67/tcp/4001",
        ],
        two__example=[f"dnsaddr=/ip6/2001:db8::2/tcp/4001/p2p/{TWO}"],
    )
    texts = [f"/dnsaddr/boot.example/p2p/{ONE}", f"/dnsaddr/boot.example/p2p/{TWO}", f"/ip4/192.0.2.9/tcp/1/p2p/{TWO}"]
    assert peers(Bootstrap(texts, dns)) == {
        ONE: ["/ip4/192.0.2.1/tcp/4001", "/dns4/one.example/tcp/443"],
        TWO: ["/ip6/2001:db8::2/tcp/4001", "/ip4/192.0.2.9/tcp/1"],
    }
    assert dns.asked.count("_dnsaddr.boot.example") == 1


def test_a_name_that_does_not_resolve_is_asked_again_soon_and_one_that_does_later():
    dns = Dns(good__example=[f"dnsaddr=/ip4/192.0.2.1/tcp/4001/p2p/{ONE}"])
    bootstrap = Bootstrap([f"/dnsaddr/good.example/p2p/{ONE}", f"/dnsaddr/bad.example/p2p/{TWO}"], dns)
    assert peers(bootstrap, times=2, gap=30) == {ONE: ["/ip4/192.0.2.1/tcp/4001"], TWO: []}
    assert dns.asked.count("_dnsaddr.good.example") == 1
    assert dns.asked.count("_dnsaddr.bad.example") == 2
    peers(Bootstrap([f"/dnsaddr/good.example/p2p/{ONE}"], dns), times=2, gap=REMEMBER + 1)
    assert dns.asked.count("_dnsaddr.good.example") == 3


def test_names_that_lead_in_circles_or_everywhere_come_to_an_end():
    dns = Dns(
        round__example=[f"dnsaddr=/dnsaddr/round.example/p2p/{ONE}", f"dnsaddr=/dnsaddr/wide.example/p2p/{ONE}"],
        wide__example=[f"dnsaddr=/dnsaddr/n{number}.example/p2p/{ONE}" for number in range(500)],
    )
    assert peers(Bootstrap([f"/dnsaddr/round.example/p2p/{ONE}"], dns)) == {ONE: []}
    assert len(dns.asked) <= MAX_NAMES


def test_the_public_bootstrap_peers_are_read():
    bootstrap = Bootstrap(DEFAULT_PEERS)
    assert len(bootstrap.ids()) == 5
    assert bootstrap.named


def test_an_address_of_another_transport_is_read_and_not_dialled():
    address = parse_bootstrap(f"/ip4/192.0.2.1/udp/4001/quic-v1/p2p/{ONE}")
    assert (address.peer, address.endpoint, address.dnsaddr) == (ONE, None, "")
    relayed = parse_bootstrap(f"/ip4/192.0.2.1/tcp/4001/p2p/{TWO}/p2p-circuit/p2p/{ONE}")
    assert (relayed.peer, relayed.endpoint) == (ONE, None)
    assert parse_bootstrap(f" /ip4/192.0.2.1/tcp/4001/ipfs/{ONE} ").endpoint is not None


@pytest.mark.parametrize(
    "text", ["/ip4/192.0.2.1/tcp/4001", f"/p2p/{ONE}", "/dnsaddr/example", f"/ip4/192.0.2.1/p2p/{ONE}x"]
)
def test_an_address_without_a_peer_is_refused(text):
    with pytest.raises(ConfigError):
        parse_bootstrap(text)
