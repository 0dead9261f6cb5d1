"""The loop over the real API on a unix socket, with our long poll and with the routes of EdgeVPN's own daemon."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from provider_kairos.api import server
from provider_kairos.api.client import DaemonClient
from provider_kairos.api.router import Router
from provider_kairos.api.routes import edgevpn_routes
from provider_kairos.api.testing import FakeBackend, serving
from provider_kairos.clock import SystemClock
from provider_kairos.provider.disk import SENTINEL
from provider_kairos.provider.loop import in_thread


@pytest.mark.parametrize("go", [False, True])
def test_a_cluster_forms_over_the_api(boxes, tmp_path, monkeypatch, go):
    if go:
        monkeypatch.setattr(server, "routes", lambda backend: Router(edgevpn_routes(backend)))
    three = boxes(3, ip_after=0.1)
    address = f"unix://{tmp_path}/api.sock"

    async def main():
        with trio.fail_after(60):
            async with serving(FakeBackend(), address), trio.open_nursery() as nursery:
                for box in three:
                    box.machine.wait = 0.1
                    box.client = DaemonClient(address, poll_interval=0.05)
                    run = partial(box.run, clock=SystemClock(), blocking=in_thread, settle=0.1)
                    nursery.start_soon(run, nursery)
                while not all(SENTINEL in box.machine.files for box in three):  # noqa: ASYNC110  # fakes have no event
                    await trio.sleep(0.02)
                nursery.cancel_scope.cancel()
        for box in three:
            box.client.close()

    trio.run(main)
    assert sum("k3s" in box.machine.active for box in three) == 1
    assert sum("k3s-agent" in box.machine.active for box in three) == 2
