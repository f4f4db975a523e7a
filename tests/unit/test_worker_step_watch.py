"""A step that does not end ends the worker; many long ones, or a process that was stopped, do not."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.testing.waiting import until
from forebay.worker.step_watch import EXIT_CODE, StepWatch, end_when_stuck


@given(st.lists(st.one_of(st.none(), st.integers(1, 3)), max_size=30), st.integers(1, 4))
def test_only_the_same_step_seen_again_and_again_is_stuck(steps: list[int | None], most_ticks: int) -> None:
    watch = StepWatch(most_ticks)
    for place, step in enumerate(steps):
        seen = steps[max(0, place - most_ticks) : place + 1]
        assert watch.tick(step) is (step is not None and seen == [step] * (most_ticks + 1))


async def test_the_process_ends_when_a_step_does_not(caplog: pytest.LogCaptureFixture) -> None:
    step, codes = 1, []
    watching = asyncio.create_task(end_when_stuck(lambda: step, 0.05, codes.append, tick_s=0.01))
    await until(watching.done)
    assert codes == [EXIT_CODE]
    assert "a step has not ended for 0.05 s" in caplog.text


async def test_a_worker_that_gets_on_or_has_nothing_to_do_lives() -> None:
    steps = iter([*range(50), *[None] * 50, *[7] * 100])
    seen: list[int | None] = []
    codes: list[int] = []

    def step_under_way() -> int | None:
        seen.append(next(steps))
        return seen[-1]

    watching = asyncio.create_task(end_when_stuck(step_under_way, 0.003, codes.append, tick_s=0.001))
    await until(watching.done)
    assert seen == [*range(50), *[None] * 50, *[7] * 4], "only then"
