"""The specification's vectors for codes, topics, keys, the whole token and sealing (2.3, 3.1)."""

from __future__ import annotations

import pytest

from provider_kairos.token import codec, otp, seal

D = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFG"
C = "GFEDCBAzyxwvutsrqponmlkjihgfedcba9876543210"
R = "room-key-room-key-room-key-room-key-room-ke"
FOREVER = 2**63 - 1

CODES = {
    "V1": (
        D,
        FOREVER,
        43,
        1700000000,
        "owEOUIEltT0j8PFlCTp40l2mFqwYvJOtonQXFIvIE+s",
        "b24f0f805e76449deb964a3f8b6c3548",
    ),
    "V2a": (D, 9000, 43, 1700000000, "JrUG/l48v750cvkIa7Hh8t7TdCZmHrSjSzUq/Co3ANU", "cb3b7003e6d185aca5576d87cc10b0ae"),
    "V2b": (R, 9000, 43, 1700000000, "g/yyOhVO6POR/EQsziMAC/u4YuRgdUFqlbSt3CbrZJk", "848b56c840228e20614ce508c8422d85"),
    "V2c": (C, 9000, 43, 1700000000, "8aGo0vbnBJMaqbBn+IseaHON3yXjwJWZWISqO2JYOU4", "272e1c6c1452c04462dfbb1b020c4f0b"),
    "V3": (C, 360, 32, 1735689600, "E3hY9EnTWyAzdtaDHtF/H94cny3yx7JX", "1bf008abe617de6ce62f27e9962d1d72"),
    "V4a": (D, FOREVER, 12, 0, "owEOUIEltT0j", "4813efe69260a89261db14f4c843b16b"),
    "V4b": (D, FOREVER, 0, 1700000000, "owEOUI", "9063c0a522573bc5d5069d587a19a755"),
    "V4c": (
        D,
        FOREVER,
        44,
        1700000000,
        "owEOUIEltT0j8PFlCTp40l2mFqwYvJOtonQXFIvIE+s=",
        "5689fd70f00061afd0186a2cb5c828cb",
    ),
}

WHOLE_TOKEN = (
    "b3RwOgogIGRodDoKICAgIGludGVydmFsOiA5MDAwCiAgICBrZXk6IDAxMjM0NTY3ODlhYmNkZWZnaGlqa2xtbm9wcXJzdHV2d3h5ekFCQ0RFRkcK"
    "ICAgIGxlbmd0aDogNDMKICBjcnlwdG86CiAgICBpbnRlcnZhbDogOTAwMAogICAga2V5OiBHRkVEQ0JBenl4d3Z1dHNycXBvbm1sa2ppaGdmZWRj"
    "YmE5ODc2NTQzMjEwCiAgICBsZW5ndGg6IDQzCnJvb206IHJvb20ta2V5LXJvb20ta2V5LXJvb20ta2V5LXJvb20ta2V5LXJvb20ta2UKcmVuZGV6"
    "dm91czogcmR2Cm1kbnM6IE1peGVkQ2FzZU1kbnNUYWcwMTIzNDU2Nzg5YWJjZGVmZ2hpamtsbW5vcHEKbWF4X21lc3NhZ2Vfc2l6ZTogMjA5NzE1"
    "MjAK"
)


def token(interval: int = 9000, *, dht_key: str = D) -> codec.NetworkToken:
    return codec.NetworkToken(
        dht=codec.OtpSettings(interval, dht_key, 43),
        crypto=codec.OtpSettings(interval, C, 43),
        room=R,
        rendezvous="rdv",
        mdns="MixedCaseMdnsTag0123456789abcdefghijklmnopq",
        max_message_size=20971520,
    )


@pytest.mark.parametrize("name", CODES)
def test_code(name: str):
    secret, interval, length, unix, expected, digest = CODES[name]
    assert otp.code(secret, interval, length, unix) == expected
    assert otp.md5_hex(expected) == digest


def test_v2_counter():
    assert otp.counter_at(9000, 1700000000) == 188888
    assert otp.counter_at(360, 1735689600) == 4821360
    assert otp.counter_at(FOREVER, 1700000000) == 0


def test_v2_epoch_of_the_whole_token():
    epoch = otp.epoch_at(token(), 1700000000)
    assert epoch.topic == "848b56c840228e20614ce508c8422d85"
    assert epoch.public_topic == "2b94235ef5b706238ea0211c2558ca3f"
    assert epoch.seal_key == b"272e1c6c1452c04462dfbb1b020c4f0b"
    assert (epoch.starts, epoch.ends) == (188888 * 9000, 188889 * 9000)
    assert otp.rendezvous_at(token(), 1700000000) == "cb3b7003e6d185aca5576d87cc10b0ae"


def test_v1_public_topic_and_seal_key_of_a_token_that_never_rotates():
    never = codec.NetworkToken(
        codec.OtpSettings(FOREVER, D, 43), codec.OtpSettings(FOREVER, C, 43), D, "rdv", "tag", 20971520
    )
    epoch = otp.epoch_at(never, 1700000000)
    assert epoch.topic == "b24f0f805e76449deb964a3f8b6c3548"
    assert epoch.public_topic == "128d115ffc8005f3f4811d73344f442e"
    assert epoch.seal_key == b"ed4bf684e9513e206d75845293cc8a21"
    assert not never.rotates


def test_empty_dht_key_means_the_literal_rendezvous():
    assert otp.rendezvous_at(token(dht_key=""), 1700000000) == "rdv"


def test_whole_token_reads_and_writes():
    assert codec.decode(WHOLE_TOKEN) == token()
    assert codec.encode(token()) == WHOLE_TOKEN


def test_seal_vector():
    key, nonce = b"272e1c6c1452c04462dfbb1b020c4f0b", bytes(range(12))
    text = "000102030405060708090a0b38e773181db32629400e631b3cdafbee98d1625c8b396513039169ccce"
    assert seal.seal(key, b"hello edgevpn", nonce) == text
    assert seal.unseal(key, text) == b"hello edgevpn"
