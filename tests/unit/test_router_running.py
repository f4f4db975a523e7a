"""Requests that run: each id once, ended from elsewhere, and none begun while the router drains."""

import asyncio

import pytest

from forebay.errors import (
    DrainingError,
    DuplicateRequestError,
    ForebayError,
    RequestCancelledError,
    UnknownRequestError,
)
from forebay.router.running import RunningRequests


def _ignore(error: ForebayError) -> None:
    pass


def test_an_id_runs_once_and_can_be_ended_while_it_runs() -> None:
    running = RunningRequests()
    errors: list[ForebayError] = []
    with running.registered("r", errors.append):
        with pytest.raises(DuplicateRequestError), running.registered("r", _ignore):
            pass
        running.cancel("r")
    assert [type(error) for error in errors] == [RequestCancelledError]
    with pytest.raises(UnknownRequestError):
        running.cancel("r")


async def test_draining_refuses_the_new_and_waits_for_the_old() -> None:
    running = RunningRequests()
    with running.registered("old", _ignore):
        running.drain()
        waiting = asyncio.create_task(running.wait_idle())
        await asyncio.sleep(0)
        assert not waiting.done()
        with pytest.raises(DrainingError) as caught, running.registered("new", _ignore):
            pass
        assert caught.value.retry_after_s is not None
    await waiting
    assert len(running) == 0


def test_what_still_runs_after_draining_hears_why_it_ends() -> None:
    running = RunningRequests()
    errors: list[ForebayError] = []
    with running.registered("a", errors.append), running.registered("b", errors.append):
        running.end_all(waited_s=2.5)
    assert [type(error) for error in errors] == [DrainingError] * 2
    assert "stopped" in errors[0].message
    assert "2.5 s" in errors[0].message
