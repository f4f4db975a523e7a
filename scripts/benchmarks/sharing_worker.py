"""One worker's engine in a process of its own: thread, scheduler and core share as in a real worker, work without end.

Started by `sharing`; answers {"do": "run", "seconds": s} with what it computed in that time. No service, no network.
"""

import argparse
import asyncio
import itertools
import mmap
import random
from pathlib import Path
from typing import Any

from forebay.engine.native_arena import NativeArena
from forebay.engine.native_load import load_native_engine, native_layout
from forebay.engine.scheduler import Finished, Limits, Scheduler
from forebay.engine.types import SamplingParams, Sequence
from forebay.host.cores import usable_cores
from forebay.models.default_model import resolve_model
from forebay.models.model_file import open_model
from forebay.role import Role
from forebay.worker.core_share import CoreShare
from forebay.worker.engine_thread import Add, Cancel, EngineThread
from forebay.worker.step_report import Report
from scripts.benchmarks.answering import Answer, answer_all, claim_stdout
from scripts.benchmarks.generation import Workload

DECODE, PREFILL = Workload(4, 32, 128), Workload(2, 512, 1)
"""Sequences at once. Decoding begins anew when a sequence is 128 tokens long; a second prompt always waits."""

_PATIENCE_S = 0.01


class SharingWorker:
    """The engine over its half of a shared arena."""

    def __init__(self, role: Role, arena: Path, cores: Path) -> None:
        model = open_model(resolve_model(None))
        layout = native_layout(model.config)
        self._workload = DECODE if role is Role.DECODE else PREFILL
        with arena.open("r+b") as file:
            memory = mmap.mmap(file.fileno(), 0)
        block_count = len(memory) // layout.block_bytes
        core_count = usable_cores()
        engine = load_native_engine(model, NativeArena(memoryview(memory), layout, block_count), threads=core_count)
        limits = Limits(layout.block_tokens, model.config.context_tokens)
        self._thread = EngineThread(engine, Scheduler(limits), lambda: True, CoreShare(cores, core_count))
        self._first_block = 0 if role is Role.DECODE else block_count // 2
        self._table_blocks = -(-(self._workload.prompt_tokens + self._workload.steps + 1) // layout.block_tokens)
        self._random, self._numbers = random.Random(0), itertools.count()
        self._slots: dict[str, int] = {}
        self._reports: list[Report] = []
        self._leaving: set[str] = set()  # cancelled, and perhaps still in a step
        self._are_gone = asyncio.Event()

    async def start(self) -> None:
        """Starts the engine's thread; nothing runs yet."""
        self._thread.start(self._on_report)

    async def run(self, seconds: float) -> Answer:
        """Computes for so long. Returns the tokens per second and, when decoding, the seconds between its steps."""
        self._reports.clear()
        for slot in range(self._workload.sequences):
            self._add(slot)
        await asyncio.sleep(seconds)
        self._leaving = set(self._slots)
        self._slots.clear()
        self._are_gone.clear()
        for sequence_id in tuple(self._leaving):
            self._thread.submit(Cancel(sequence_id))
        await self._are_gone.wait()
        await asyncio.sleep(_PATIENCE_S)  # until the thread sleeps, and has said that the cores are the other's
        return _decode_answer(self._reports) if self._workload is DECODE else _prefill_answer(self._reports)

    def _on_report(self, report: Report) -> None:
        self._reports.append(report)
        self._leaving.difference_update(report.removed)
        if not self._leaving:
            self._are_gone.set()
        for outcome in report.outcomes:
            if isinstance(outcome, Finished) and (slot := self._slots.pop(outcome.sequence_id, None)) is not None:
                self._add(slot)

    def _add(self, slot: int) -> None:
        name = f"sequence-{next(self._numbers)}"
        self._slots[name] = slot
        first_block = self._first_block + slot * self._table_blocks
        prompt = [self._random.randrange(1_000, 40_000) for _ in range(self._workload.prompt_tokens)]
        sampling = SamplingParams(max_tokens=self._workload.steps, seed=0, temperature=0.0)
        table = list(range(first_block, first_block + self._table_blocks))
        self._thread.submit(Add(Sequence(name, prompt, sampling, table), 0))


def _decode_answer(reports: list[Report]) -> Answer:
    """From one step's end to the next, where both are of all sequences and of no prompt."""
    step_s = [
        second.ended_s - first.ended_s
        for first, second in itertools.pairwise(reports)
        if _is_full_step(first) and _is_full_step(second)
    ]
    return {"tokens_per_s": DECODE.sequences * len(step_s) / sum(step_s), "step_s": step_s}


def _is_full_step(report: Report) -> bool:
    return len(report.shares) == DECODE.sequences and all(share.token_count == 1 for share in report.shares)


def _prefill_answer(reports: list[Report]) -> Answer:
    computing = [report for report in reports if report.shares]
    token_count = sum(share.token_count for report in computing for share in report.shares)
    return {"tokens_per_s": token_count / (computing[-1].ended_s - computing[0].began_s)}


def main() -> None:
    """Loads, then answers."""
    answers = claim_stdout()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=[Role.DECODE.value, Role.PREFILL.value])
    parser.add_argument("arena", type=Path)
    parser.add_argument("cores", type=Path)
    arguments = parser.parse_args()
    worker = SharingWorker(Role(arguments.role), arguments.arena, arguments.cores)
    with asyncio.Runner() as runner:
        runner.run(worker.start())

        def run(command: dict[str, Any]) -> Answer:
            return runner.run(worker.run(command["seconds"]))

        answer_all(answers, arguments.role, {"run": run})


if __name__ == "__main__":
    main()
