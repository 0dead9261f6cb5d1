"""Importing py-libp2p: late, without what needs a compiler, and only the version that we know."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

from provider_kairos.errors import LocalError
from provider_kairos.mesh import parts


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_the_mesh_imports_no_libp2p():
    assert run("import sys, provider_kairos.mesh.node; print('libp2p' in sys.modules)").strip() == "False"


def test_loading_brings_neither_quic_nor_what_needs_a_compiler():
    loaded = run(
        "import sys; from provider_kairos.mesh import parts; parts.load();"
        "print('\\n'.join(name for name, m in sys.modules.items() if getattr(m, '__file__', None)))"
    ).split()
    for name in ("libp2p", "aioquic", "coincurve", "fastecdsa", "grpc", "zeroconf", "requests", "libp2p.network.swarm"):
        assert name not in loaded
    assert "libp2p.peer.id" in loaded


def test_a_stand_in_can_be_named_but_not_called():
    parts.load()
    from libp2p.crypto import secp256k1

    with pytest.raises(LocalError, match="left out"):
        secp256k1.Secp256k1PrivateKey.new()


def test_another_version_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda _name: "0.9.0")
    with pytest.raises(LocalError, match=r"0\.9\.0"):
        parts.load.__wrapped__()


def test_a_missing_name_is_named():
    with pytest.raises(LocalError, match=r"libp2p\.peer\.id\.ID\.no_such_thing"):
        parts._take("libp2p.peer.id", "ID.no_such_thing")
    with pytest.raises(LocalError, match=r"libp2p\.peer\.gone"):
        parts._take("libp2p.peer.gone", "X")
