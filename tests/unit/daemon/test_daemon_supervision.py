from __future__ import annotations

import itertools
import logging

import pytest
import trio
from trio.testing import MockClock

from provider_kairos.daemon.supervision import Supervisor, known_error
from provider_kairos.errors import HostError, LocalError


def run(main):
    return trio.run(main, clock=MockClock(autojump_threshold=0))


def test_an_error_inside_of_groups_is_known():
    error = HostError("no disk")
    assert known_error(ExceptionGroup("", [ExceptionGroup("", [error])])) is error
    assert known_error(ExceptionGroup("", [error, ValueError("bug")])) is None
    assert known_error(ValueError("bug")) is None


@pytest.mark.parametrize(
    ("error", "traceback"),
    [
        (HostError("the disk is full"), False),
        (ExceptionGroup("", [HostError("the disk is full")]), False),
        (ValueError("a bug"), True),
        (LocalError("a bug of ours"), True),
    ],
)
def test_a_part_that_breaks_begins_anew_and_only_bugs_bring_a_traceback(caplog, error, traceback):
    runs = 0

    async def part():
        nonlocal runs
        runs += 1
        if runs < 4:
            raise error
        await trio.sleep_forever()

    async def main():
        supervisor = Supervisor()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervisor.keep, "part", part)
            await trio.sleep(0.5)
            assert supervisor.broken == {"part"}
            await trio.sleep(20)
            assert supervisor.broken == set()
            assert (runs, supervisor.restarts) == (4, 3)
            nursery.cancel_scope.cancel()

    with caplog.at_level(logging.ERROR):
        run(main)
    assert len(caplog.records) == 3
    assert any(record.exc_info for record in caplog.records) is traceback


def test_the_pause_grows_to_half_a_minute_and_starts_anew_after_a_good_while():
    began: list[float] = []
    good = False

    async def part():
        began.append(trio.current_time())
        if good:
            await trio.sleep(100)
        raise HostError("again")

    async def main():
        nonlocal good
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Supervisor().keep, "part", part)
            await trio.sleep(200)
            pauses = [round(b - a) for a, b in itertools.pairwise(began)]
            assert pauses[:6] == [1, 2, 4, 8, 16, 30]
            assert max(pauses) == 30
            good = True
            await trio.sleep(250)
            assert round(began[-1] - began[-2]) == 101
            nursery.cancel_scope.cancel()

    run(main)
