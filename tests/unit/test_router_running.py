"""Requests that run: each id once, ended from elsewhere, and none begun while the router drains."""

import asyncio

import pytest

from forebay.errors import DrainingError, DuplicateRequestError, UnknownRequestError
from forebay.router.running import RunningRequests


def test_an_id_runs_once_and_can_be_ended_while_it_runs() -> None:
    running, ended = RunningRequests(), []
    with running.registered("r", lambda: ended.append("r")):
        with pytest.raises(DuplicateRequestError), running.registered("r", ended.clear):
            pass
        running.cancel("r")
    assert ended == ["r"]
    with pytest.raises(UnknownRequestError):
        running.cancel("r")


async def test_draining_refuses_the_new_and_waits_for_the_old() -> None:
    running = RunningRequests()
    with running.registered("old", lambda: None):
        running.drain()
        waiting = asyncio.create_task(running.wait_idle())
        await asyncio.sleep(0)
        assert not waiting.done()
        with pytest.raises(DrainingError) as caught, running.registered("new", lambda: None):
            pass
        assert caught.value.retry_after_s is not None
    await waiting
    assert len(running) == 0
