"""Workers of a node share its cores: alone each has all, together a part by urgency; the dead are forgotten."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.errors import StartError
from forebay.worker.core_division import StepWork
from forebay.worker.core_share import SLOT_COUNT, CoreShare

SECOND_NS = 1_000_000_000

# Record locks belong to processes: a second worker must be one.
OTHER_WORKER = """
import sys
from pathlib import Path
from forebay.worker.core_division import StepWork
from forebay.worker.core_share import CoreShare
share = CoreShare(Path(sys.argv[1]), core_count=8)
works = {"enter": StepWork(), "batch": StepWork(1), "decode": StepWork(0, 0.05), "slow decode": StepWork(1, 1.5)}
print(share.enter(), flush=True)
for line in sys.stdin:
    work = works.get(line.strip())
    print(share.enter(work) if work else share.leave(), flush=True)
"""


class Other:
    def __init__(self, page: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OTHER_WORKER, str(page)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.first_share = self._answer()

    def say(self, word: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        with self.process:
            self.process.kill()


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return tmp_path / "cores"


@pytest.fixture
def other(page: Path) -> Iterator[Other]:
    worker = Other(page)
    yield worker
    worker.kill()


def test_alone_a_worker_has_all_cores(page: Path) -> None:
    assert CoreShare(page, core_count=8).enter() == 8


def test_two_busy_workers_have_half_each(page: Path, other: Other) -> None:
    share = CoreShare(page, core_count=8)
    assert other.first_share == "8"
    assert share.enter() == 4
    assert other.say("enter") == "4"
    share.leave()
    assert other.say("enter") == "8", "an idle worker leaves its cores to others"
    other.say("leave")
    assert share.enter() == 8


def test_a_node_rests_when_none_of_its_workers_computes(page: Path, other: Other) -> None:
    share = CoreShare(page, core_count=8)
    assert share.is_anyone_busy(), "the other"
    other.say("leave")
    assert not share.is_anyone_busy()
    share.enter()
    assert share.is_anyone_busy()
    share.leave()
    assert not share.is_anyone_busy()


def test_cores_follow_what_each_computes_now(page: Path, other: Other) -> None:
    share = CoreShare(page, core_count=8)
    assert other.say("batch") == "8"
    assert share.enter(StepWork(priority=0)) == 6
    assert other.say("batch") == "2"
    assert share.enter(StepWork(priority=1)) == 4
    assert other.say("enter") == "6"
    assert share.enter(StepWork(priority=2)) == 1


def test_a_worker_uses_no_more_cores_than_it_may(page: Path, other: Other) -> None:
    share = CoreShare(page, core_count=8, most_cores=3)
    other.say("leave")
    assert share.enter() == 3
    assert other.say("batch") == "2"
    assert share.enter() == 3


def test_a_decode_step_s_slo_is_seen_while_it_is_busy(page: Path, other: Other) -> None:
    share = CoreShare(page, core_count=8)
    share.enter(StepWork(0, 0.01))
    assert share.step_slo_of_others_s() is None, "the other computes prompts, and one's own SLO is not another's"
    other.say("slow decode")
    assert share.step_slo_of_others_s() == 1.5
    third = Other(page)
    third.say("decode")
    assert share.step_slo_of_others_s() == 0.05
    third.say("leave")
    assert share.step_slo_of_others_s() == 1.5
    other.say("enter")
    assert share.step_slo_of_others_s() is None
    third.kill()


def test_a_worker_that_died_in_a_step_is_forgotten_and_its_slot_is_free(page: Path, other: Other) -> None:
    now_ns = [0]
    share = CoreShare(page, core_count=8, clock_ns=lambda: now_ns[0])
    other.say("enter")
    other.kill()
    now_ns[0] = time.monotonic_ns()
    assert share.enter() == 4
    now_ns[0] += 2 * SECOND_NS
    assert share.enter() == 8
    successor = Other(page)
    assert successor.say("enter") == "4"
    successor.kill()


@given(core_count=st.integers(1, 256), beats=st.lists(st.integers(0, 3), max_size=SLOT_COUNT - 1))
def test_shares_are_at_least_one_and_never_exceed_the_cores(
    tmp_path_factory: pytest.TempPathFactory, core_count: int, beats: list[int]
) -> None:
    page = tmp_path_factory.mktemp("share") / "cores"
    share = CoreShare(page, core_count, clock_ns=lambda: 10 * SECOND_NS)
    content = bytearray(page.read_bytes())
    for slot, age_s in enumerate(beats, start=1):
        content[slot * 64 : slot * 64 + 8] = ((10 - age_s) * SECOND_NS if age_s else 0).to_bytes(8, "little")
    page.write_bytes(content)
    busy = 1 + sum(age_s == 1 for age_s in beats)
    assert share.enter() == max(1, core_count // busy)
    share.close()


def test_a_full_page_is_refused(page: Path) -> None:
    holder = Other(page)
    script = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
fcntl.lockf(file, fcntl.LOCK_EX, 63 * 64, 64)
print("held", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(page)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as rest:
        assert rest.stdout is not None
        assert rest.stdout.readline() == "held\n"
        with pytest.raises(StartError, match="--node-id"):
            CoreShare(page, core_count=8)
        rest.kill()
    holder.kill()
