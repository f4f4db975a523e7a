"""When a worker measures its machine: while nobody computes, and never twice."""

import asyncio
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from forebay.errors import StartError
from forebay.kernels.cpu.peaks import DisturbedError
from forebay.kernels.peaks import Arithmetic, Peaks
from forebay.testing.waiting import until
from forebay.worker.calibration import Calibration

PEAKS = Peaks(2, dict.fromkeys(Arithmetic, 1.0), 2.0, 1.0)


@dataclass
class FakeSource:
    """Measures until it is told to end, asking all the time."""

    kept: Peaks | None = None
    error: Exception | None = None
    attempts: int = 0
    can_end: threading.Event = field(default_factory=threading.Event)

    def known(self) -> Peaks | None:
        return self.kept

    def learn(self, is_undisturbed: Callable[[], bool]) -> Peaks:
        self.attempts += 1
        if self.error is not None:
            raise self.error
        while not self.can_end.wait(0.001):
            if not is_undisturbed():
                raise DisturbedError
        return PEAKS


@dataclass
class Node:
    is_busy: bool = False
    looks: int = 0
    is_gone: bool = False

    def look(self) -> bool:
        assert not self.is_gone
        self.looks += 1
        return self.is_busy


async def test_what_is_kept_is_used_at_once() -> None:
    told: list[Peaks] = []
    node = Node(is_busy=True)
    calibration = Calibration(FakeSource(kept=PEAKS), node.look, told.append)
    calibration.start()
    await until(lambda: told)
    await calibration.close()
    assert (told, node.looks) == ([PEAKS], 0)


async def test_it_waits_until_nobody_computes_and_gives_way_to_who_begins() -> None:
    told: list[Peaks] = []
    node, source = Node(is_busy=True), FakeSource()
    calibration = Calibration(source, node.look, told.append, quiet_s=0.02)
    calibration.start()
    await until(lambda: node.looks > 6)
    assert source.attempts == 0
    node.is_busy = False
    await until(lambda: source.attempts == 1)
    node.is_busy = True
    looks = node.looks
    await until(lambda: node.looks > looks + 6)
    assert (source.attempts, told) == (1, [])
    node.is_busy = False
    source.can_end.set()
    await until(lambda: told)
    await calibration.close()
    assert (source.attempts, told) == (2, [PEAKS])


async def test_closing_ends_a_measuring_and_asks_nobody_any_more() -> None:
    node, source = Node(), FakeSource()
    calibration = Calibration(source, node.look, lambda peaks: None, quiet_s=0.01)
    calibration.start()
    await until(lambda: source.attempts == 1)
    await calibration.close()
    node.is_gone = True
    await asyncio.get_running_loop().shutdown_default_executor()
    source.can_end.set()


async def test_a_machine_that_cannot_be_measured_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    source = FakeSource(error=StartError("no compiler"))
    calibration = Calibration(source, lambda: False, lambda peaks: pytest.fail("told"), quiet_s=0.01)
    with caplog.at_level(logging.WARNING):
        calibration.start()
        await until(lambda: caplog.messages)
        await calibration.close()
    assert "no compiler" in caplog.text
    assert source.attempts == 1


async def test_one_that_never_began_can_be_closed() -> None:
    await Calibration(FakeSource(), lambda: False, lambda peaks: None).close()
