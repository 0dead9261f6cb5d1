"""The switch of the trust zone: there only where the node has a gate."""

from __future__ import annotations

from pathlib import Path

import trio

from provider_kairos.api.testing import FakeBackend, FakeGate, ask, serving


def test_the_gate_is_shown_and_switched(tmp_path: Path) -> None:
    backend = FakeBackend()
    backend.gate = FakeGate()

    async def run() -> None:
        async with serving(backend, f"unix://{tmp_path}/s") as address:
            for method, path, answer in (
                ("GET", "", "true\n"),
                ("PUT", "/disable", "false\n"),
                ("GET", "", "false\n"),
                ("PUT", "/nonsense", "false\n"),
                ("PUT", "/enable", "true\n"),
            ):
                assert (await ask(address, method, f"/api/peergate{path}"))[::2] == (200, answer)
            assert (await ask(address, "GET", "/api/peergate/enable"))[0] == 405

    trio.run(run)


def test_without_a_gate_there_is_no_switch(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(FakeBackend(), f"unix://{tmp_path}/s") as address:
            assert (await ask(address, "GET", "/api/peergate"))[0] == 404
            assert (await ask(address, "PUT", "/api/peergate/disable"))[0] == 404

    trio.run(run)
