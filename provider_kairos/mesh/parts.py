"""The parts that we take from py-libp2p, and the way to import them without the rest (spec/libp2p.md 2).

py-libp2p's packages import each other from their ``__init__`` files: asking for a key type brings in QUIC, WebRTC,
UPnP, a DHT and an ACME client, and libraries that need a compiler. :func:`load` therefore does two things first:

* the ``__init__`` of the packages in :data:`HOLLOW` is not run; the package is only a place to find modules in;
* the modules in :data:`ABSENT` (not installed, or never used by us) are stand-ins whose names can be imported,
  inherited from and type-hinted with. Calling one is a :class:`~provider_kairos.errors.LocalError`.

Version and every name used are checked here, so that a changed py-libp2p is refused at start and by name. What the
parts are used for is the business of the other modules. Why: docs/decisions/0002-libp2p-without-a-compiler.md.
"""

from __future__ import annotations

import abc
import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from provider_kairos.errors import LocalError
from provider_kairos.mesh.rsa_keys import make_rsa_public_key

__all__ = ["LIBP2P_VERSION", "Parts", "load"]

LIBP2P_VERSION = "0.8.1"

HOLLOW = frozenset(
    {
        "libp2p",
        "libp2p.identity",
        "libp2p.identity.identify",
        "libp2p.kad_dht",
        "libp2p.security",
        "libp2p.security.tls",
        "libp2p.transport",
    }
)
"""Packages whose ``__init__`` is left out."""

ABSENT = frozenset(
    {
        "Crypto",  # RSA keys: those of others are checked with cryptography (mesh.rsa_keys)
        "coincurve",  # secp256k1 keys
        "fastecdsa",  # ECDSA keys
        "libp2p.tools",  # services on anyio; our tasks are trio's
        "libp2p.transport.quic",  # TCP alone
        "multibase",  # another text form of peer IDs
        "psutil",  # interface addresses; ours come from the kernel (mesh.addresses)
    }
)
"""Modules (with everything below them) that are replaced by stand-ins."""


class _StandInMeta(abc.ABCMeta):
    def __call__(cls, *_args: object, **_kwargs: object) -> Any:
        raise LocalError(f"{cls.__module__}.{cls.__name__} is left out of this program")


class _StandInModule(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _StandInMeta(name, (), {"__module__": self.__name__})
        setattr(self, name, made)
        return made


class _StandInLoader(importlib.abc.Loader):
    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _StandInModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__path__ = []


class _HollowLoader(importlib.abc.Loader):
    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:  # noqa: ARG002 - the default module serves
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Nothing runs: that is the point."""


class _Finder(importlib.abc.MetaPathFinder):
    """Answers for the names above; every other name goes on to Python's own finders."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if any(fullname == name or fullname.startswith(name + ".") for name in ABSENT):
            return importlib.machinery.ModuleSpec(fullname, _StandInLoader(), is_package=True)
        if fullname in HOLLOW:
            real = importlib.machinery.PathFinder.find_spec(fullname, path, target)
            if real is None or real.submodule_search_locations is None:
                raise LocalError(f"py-libp2p {LIBP2P_VERSION} has no package {fullname}")
            spec = importlib.machinery.ModuleSpec(fullname, _HollowLoader(), is_package=True)
            spec.submodule_search_locations = list(real.submodule_search_locations)
            return spec
        return None


@dataclass(frozen=True, slots=True)
class Parts:
    """What the mesh takes from py-libp2p; the names are py-libp2p's own."""

    ID: Any
    PublicKey: Any
    KeyPair: Any
    create_ed25519: Any
    create_x25519: Any
    NoisePattern: Any
    TLSTransport: Any
    TLSIdentity: Any
    verify_certificate_chain: Any
    Multiaddr: Any
    Rpc: Any
    RpcMessage: Any
    ControlMessage: Any
    Identify: Any
    KadMessage: Any
    DecodeError: Any


def _take(module: str, *names: str) -> list[Any]:
    """Import ``names`` from a py-libp2p module; a missing one is named in the error."""
    try:
        loaded = importlib.import_module(module)
    except ImportError as error:
        raise LocalError(f"py-libp2p {LIBP2P_VERSION}: {module} cannot be imported: {error}") from error
    found = []
    for name in names:
        value: Any = loaded
        for part in name.split("."):
            value = getattr(value, part, None)
            if value is None:
                raise LocalError(f"py-libp2p {LIBP2P_VERSION}: {module}.{name} does not exist")
        found.append(value)
    return found


@functools.cache
def load() -> Parts:
    """Import the parts, once per process. Raises LocalError when py-libp2p is not the one that we know."""
    try:
        version = importlib.metadata.version("libp2p")
    except importlib.metadata.PackageNotFoundError as error:
        raise LocalError("py-libp2p is not installed", hint=f"install libp2p=={LIBP2P_VERSION}") from error
    if version != LIBP2P_VERSION:
        raise LocalError(f"py-libp2p is {version}, this program knows {LIBP2P_VERSION}")
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())

    peer_id, _, _, _ = _take("libp2p.peer.id", "ID", "ID.from_pubkey", "ID.to_base58", "ID.from_base58")
    public_key, key_pair = _take("libp2p.crypto.keys", "PublicKey", "KeyPair")
    (create_ed25519,) = _take("libp2p.crypto.ed25519", "create_new_key_pair")
    (create_x25519,) = _take("libp2p.crypto.x25519", "create_new_key_pair")
    pattern, _, _ = _take(
        "libp2p.security.noise.patterns", "PatternXX", "PatternXX.handshake_inbound", "PatternXX.handshake_outbound"
    )
    _take("libp2p.security.noise.io", "NoiseTransportReadWriter.encrypt", "NoiseTransportReadWriter.decrypt")
    tls, identity, _ = _take(
        "libp2p.security.tls.transport", "TLSTransport", "IdentityConfig", "TLSTransport.create_ssl_context"
    )
    (verify_chain,) = _take("libp2p.security.tls.certificate", "verify_certificate_chain")
    rpc, message, control = _take("libp2p.pubsub.pb.rpc_pb2", "RPC", "Message", "ControlMessage")
    (identify,) = _take("libp2p.identity.identify.pb.identify_pb2", "Identify")
    (kad_message,) = _take("libp2p.kad_dht.pb.kademlia_pb2", "Message")
    key_types, deserializers = _take("libp2p.crypto.serialization", "KeyType", "key_type_to_public_key_deserializer")
    deserializers[key_types.RSA.value] = make_rsa_public_key(public_key, key_types.RSA).from_bytes
    (multiaddr,) = _take("multiaddr", "Multiaddr")
    (decode_error,) = _take("google.protobuf.message", "DecodeError")
    return Parts(
        ID=peer_id,
        PublicKey=public_key,
        KeyPair=key_pair,
        create_ed25519=create_ed25519,
        create_x25519=create_x25519,
        NoisePattern=pattern,
        TLSTransport=tls,
        TLSIdentity=identity,
        verify_certificate_chain=verify_chain,
        Multiaddr=multiaddr,
        Rpc=rpc,
        RpcMessage=message,
        ControlMessage=control,
        Identify=identify,
        KadMessage=kad_message,
        DecodeError=decode_error,
    )
