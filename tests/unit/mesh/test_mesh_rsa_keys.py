"""Peers with RSA identities, as some bootstrap peers of the public DHT have: known by their hash, and verified."""

from __future__ import annotations

import hashlib

import base58
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from provider_kairos.errors import PeerError
from provider_kairos.mesh import parts


@pytest.fixture(scope="module")
def key():
    return rsa.generate_private_key(65537, 2048)


def der(key):
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def protobuf(key):
    """Type RSA (0) and the key's DER, as go-libp2p writes it."""
    data = der(key)
    return b"\x08\x00\x12" + bytes((len(data) & 0x7F | 0x80, len(data) >> 7)) + data


def deserialize(data):
    from libp2p.crypto.serialization import deserialize_public_key

    return deserialize_public_key(data)


def test_a_signature_is_verified_and_the_peer_id_is_the_hash_of_the_key(key):
    taken = parts.load()
    public = deserialize(protobuf(key))
    signature = key.sign(b"said", padding.PKCS1v15(), hashes.SHA256())
    assert public.verify(b"said", signature)
    assert not public.verify(b"other", signature)
    expected = base58.b58encode(b"\x12\x20" + hashlib.sha256(protobuf(key)).digest()).decode()
    assert taken.ID.from_pubkey(public).to_base58() == expected
    assert public.serialize() == protobuf(key)


@pytest.mark.parametrize("data", [b"", b"\x30", b"\x30" * 3000])
def test_nonsense_is_refused(data):
    size = bytes((len(data) & 0x7F | 0x80, len(data) >> 7))
    with pytest.raises((PeerError, ValueError)):
        deserialize(b"\x08\x00\x12" + size + data)


def test_a_short_key_is_refused():
    with pytest.raises(PeerError, match="2048"):
        deserialize(protobuf(rsa.generate_private_key(65537, 1024)))


def test_a_certificate_with_an_rsa_identity_is_verified(key, monkeypatch):
    """TLS: py-libp2p's own check, with the identity's signature over the certificate's key."""
    import datetime as dt

    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID
    from libp2p.security.tls import certificate

    taken = parts.load()
    tls = ec.generate_private_key(ec.SECP256R1())
    spki = tls.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    signature = key.sign(certificate.LIBP2P_CERT_PREFIX + spki, padding.PKCS1v15(), hashes.SHA256())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .serial_number(1)
        .public_key(tls.public_key())
        .not_valid_before(now - dt.timedelta(1))
        .not_valid_after(now + dt.timedelta(1))
        .add_extension(
            x509.UnrecognizedExtension(
                certificate.LIBP2P_EXTENSION_OID, certificate.encode_signed_key(protobuf(key), signature)
            ),
            critical=False,
        )
        .sign(tls, hashes.SHA256())
    )
    assert taken.verify_certificate_chain([made]).serialize() == protobuf(key)
