"""Key texts of EdgeVPN's form: read, written, refused without showing anything of them."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from provider_kairos.trustzone import keys
from provider_kairos.trustzone.sign import sign, sign_native, verify, verify_native

RECORDED = next(
    record
    for line in (Path(__file__).parents[2] / "interop/recordings/messages-035-guard.jsonl").read_text().splitlines()
    if (record := json.loads(line)).get("do") == "keys"
)
PAIR = keys.generate()


def test_a_recorded_pair_belongs_together_and_is_written_back_byte_for_byte():
    private = keys.load_private(RECORDED["private_key"])
    assert keys.public_text(private.public_key()) == RECORDED["public_key"]
    assert keys.fingerprint(keys.load_public(RECORDED["public_key"])) == keys.fingerprint(private.public_key())
    sec1 = private.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    assert keys.pem_block("EC PRIVATE KEY", sec1) == RECORDED["private_key"]


def test_a_fresh_pair_has_the_form_of_a_recorded_one():
    for ours, theirs in ((PAIR.private, RECORDED["private_key"]), (PAIR.public, RECORDED["public_key"])):
        one, other = (base64.urlsafe_b64decode(text).decode().splitlines() for text in (ours, theirs))
        assert (one[0], one[-1], list(map(len, one))) == (other[0], other[-1], list(map(len, other)))
    assert keys.fingerprint(keys.load_public(PAIR.public)) == keys.fingerprint(
        keys.load_private(PAIR.private).public_key()
    )


def test_a_private_key_shows_nowhere():
    assert PAIR.private not in repr(PAIR)


def rsa_public():
    der = (
        rsa.generate_private_key(65537, 2048)
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return keys.pem_block("EC PUBLIC KEY", der)


def of_curve(curve):
    return keys.public_text(ec.generate_private_key(curve).public_key())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "not base64 at all!",
        PAIR.public[:-24],
        PAIR.public.replace("=", ""),
        base64.urlsafe_b64encode(b"no pem").decode(),
        keys.pem_block("EC PUBLIC KEY", b"no der"),
        PAIR.private,
        rsa_public(),
        of_curve(ec.SECP256K1()),
        PAIR.public + "A" * keys.MAX_KEY_TEXT,
        "\u00e9" * 40,
    ],
)
def test_what_is_no_public_key_is_refused_without_being_shown(text):
    with pytest.raises(keys.KeyTextError) as refused:
        keys.load_public(text)
    assert not text or len(text) < 2 or text[:20] not in str(refused.value)


@pytest.mark.parametrize("text", [PAIR.public, "", keys.pem_block("EC PRIVATE KEY", b"\x30\x00")])
def test_what_is_no_private_key_is_refused(text):
    with pytest.raises(keys.KeyTextError, match="private key"):
        keys.load_private(text)


def test_line_ends_in_a_key_are_passed_over_as_go_does():
    assert keys.load_public(PAIR.public[:64] + "\r\n" + PAIR.public[64:] + "\n")


def test_signatures_verify_for_their_text_and_key_alone():
    private, other = keys.load_private(PAIR.private), keys.generate()
    public, strange = private.public_key(), keys.load_public(other.public)
    for make, check in ((sign, verify), (sign_native, verify_native)):
        signature = make(private, b"challenge")
        assert check(public, signature, b"challenge")
        assert not check(public, signature, b"challenge ")
        assert not check(strange, signature, b"challenge")
        assert make(private, b"challenge") != signature


def test_neither_kind_of_signature_passes_for_the_other():
    private = keys.load_private(PAIR.private)
    public = private.public_key()
    native = base64.b64decode(sign_native(private, b"challenge"))
    assert not verify(public, keys.pem_block("SIGNATURE", native), b"challenge")
    edgevpn = keys.pem_bytes(sign(private, b"challenge"))
    assert not verify_native(public, base64.b64encode(edgevpn).decode(), b"challenge")


@pytest.mark.parametrize(
    "signature", ["", "x", "=", "\u00e9", "A" * 5000, keys.pem_block("SIGNATURE", b""), PAIR.public]
)
def test_nonsense_is_no_signature(signature):
    public = keys.load_public(PAIR.public)
    assert not verify(public, signature, b"challenge")
    assert not verify_native(public, signature, b"challenge")
