"""Certificate authorities and certificates of a cluster (k3s notes, sections 3.1 to 3.3 and 7), EC P-256 throughout.

``server/tls`` holds the authorities and the server's own certificates, keys 0600 and ``.crt`` 0644. The subject of
every authority says that it belongs to a stand-in. The key is always written before its certificate, so that a
certificate on disk means a usable pair.
"""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from provider_kairos.lab.k3s import files

__all__ = ["Authority", "issue", "kubeconfig", "new_key", "request_for", "sign_request", "write_pair"]

AUTHORITIES = ("server-ca", "client-ca", "request-header-ca")
TEN_YEARS = dt.timedelta(days=3650)
ONE_YEAR = dt.timedelta(days=365)
# Boxes share one clock, real ones do not quite.
SLACK = dt.timedelta(minutes=5)


def new_key() -> bytes:
    """A fresh private key, PEM."""
    return _pem(ec.generate_private_key(ec.SECP256R1()))


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def _load(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("not an EC key")
    return key


@dataclass(frozen=True, slots=True)
class Authority:
    """One CA: certificate and key as they stand on disk."""

    name: str
    certificate: bytes
    key: bytes = field(repr=False)

    @classmethod
    def create(cls, name: str) -> Authority:
        """A new self-signed authority named as k3s does, ``k3s-<name>@<unix time>``."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "k3s stand-in"),
                x509.NameAttribute(NameOID.COMMON_NAME, f"k3s-{name}@{int(time.time())}"),
            ]
        )
        now = dt.datetime.now(dt.UTC)
        usage = x509.KeyUsage(
            digital_signature=True,
            key_encipherment=True,
            key_cert_sign=True,
            content_commitment=False,
            data_encipherment=False,
            key_agreement=False,
            crl_sign=False,
            encipher_only=False,
            decipher_only=False,
        )
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - SLACK)
            .not_valid_after(now + TEN_YEARS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(name, certificate.public_bytes(serialization.Encoding.PEM), _pem(key))

    @classmethod
    def load_or_create(cls, folder: Path, name: str) -> Authority:
        """The authority of ``<folder>/<name>.crt`` and ``.key``; both are made when one is missing."""
        certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
        if certificate.is_file() and key.is_file():
            return cls(name, certificate.read_bytes(), key.read_bytes())
        made = cls.create(name)
        made.save(folder)
        return made

    def save(self, folder: Path) -> None:
        """Write both files."""
        write_pair(folder / self.name, self.certificate, self.key)


def write_pair(stem: Path, certificate: bytes, key: bytes) -> None:
    """Write ``<stem>.key`` (0600), then ``<stem>.crt`` (0644)."""
    files.write(stem.with_name(f"{stem.name}.key"), key)
    files.write(stem.with_name(f"{stem.name}.crt"), certificate, 0o644)


def _alternative_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _sign(
    authority: Authority,
    public: ec.EllipticCurvePublicKey,
    subject: x509.Name,
    names: Sequence[str],
) -> bytes:
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    now = dt.datetime.now(dt.UTC)
    usage = ExtendedKeyUsageOID.SERVER_AUTH if names else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SLACK)
        .not_valid_after(now + ONE_YEAR)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            ),
            critical=False,
        )
    )
    if names:
        unique = dict.fromkeys(name for name in names if name)
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_alternative_name(name) for name in unique]), critical=False
        )
    signed = builder.sign(_load(authority.key), hashes.SHA256())
    # k3s appends the authority to what it hands out.
    return signed.public_bytes(serialization.Encoding.PEM) + authority.certificate


def _subject(common_name: str, organization: str) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization)] if organization else []
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def issue(
    authority: Authority, key: bytes, common_name: str, organization: str = "", names: Sequence[str] = ()
) -> bytes:
    """A certificate for the private key ``key`` (PEM): for servers when ``names`` are given, else for clients."""
    return _sign(authority, _load(key).public_key(), _subject(common_name, organization), names)


def request_for(key: bytes) -> bytes:
    """The signing request that an agent posts, DER, about 200 bytes; its subject does not matter."""
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(_load(key), hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )


def sign_request(
    authority: Authority, request: bytes, common_name: str, organization: str = "", names: Sequence[str] = ()
) -> bytes:
    """A certificate for the key of the signing request ``request`` (DER).

    Raises:
        ValueError: the request cannot be read or is not signed by its own key.
    """
    try:
        parsed = x509.load_der_x509_csr(request)
        public = parsed.public_key()
        if not parsed.is_signature_valid or not isinstance(public, ec.EllipticCurvePublicKey):
            raise ValueError("certificate signing request is not valid")
    except InvalidSignature as error:
        raise ValueError("certificate signing request is not valid") from error
    return _sign(authority, public, _subject(common_name, organization), names)


def kubeconfig(server: str, ca: bytes, certificate: bytes, key: bytes) -> str:
    """The admin kubeconfig: everything is called ``default`` and stands inline (k3s notes, section 3.3)."""
    ca64, certificate64, key64 = (base64.b64encode(part).decode() for part in (ca, certificate, key))
    return f"""apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: {ca64}
    server: {server}
  name: default
contexts:
- context:
    cluster: default
    user: default
  name: default
current-context: default
kind: Config
users:
- name: default
  user:
    client-certificate-data: {certificate64}
    client-key-data: {key64}
"""
