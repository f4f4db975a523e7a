"""The router's plan: what it costs, and how near its predictions come to what then happens.

plan() is asked for 8,192-token prompts in fleets of 64 and 1,000 workers (four a node: two prefill, two decode) with
random loads and rates, of which one load changes before each plan, and a prefix index of 1,000,000 blocks in which half
of the prompts have a prefix somewhere. The judged figure is finding the prefix and planning, garbage collection
included; hashing the prompt is told apart.

Predictions are those of plans in a real mesh under a mixed run: prompts of 32 to 1,000 tokens, one to six at a time,
with 16 to 64 tokens of answer. The first requests, from which the router learns, are not counted. Errors are shares of
what was measured; the step is the mean of one answer's.

Example:
  scripts/bench route      some two minutes
"""

import asyncio
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from forebay.client import AsyncClient, Completion
from forebay.kv.hashing import block_hashes, root_hash
from forebay.kv.layout import KvDtype, KvLayout
from forebay.kv.tier import Tier
from forebay.role import Role
from forebay.routing.correction import Corrections, Phase
from forebay.routing.cost import ChipRates, ModelSize
from forebay.routing.fleet import FleetSnapshot, Worker
from forebay.routing.forecast import Conditions
from forebay.routing.in_flight import WorkerLoad
from forebay.routing.plan import PlanRequest, plan
from forebay.routing.prefix_index import PrefixIndex
from forebay.testing.mesh import running_mesh
from forebay.testing.waiting import eventually
from scripts.benchmarks.bare_engine import random_prompt
from scripts.benchmarks.options import Options
from scripts.benchmarks.report import Figure, report

_PROMPT_TOKENS: Final = 8192
_INDEX_BLOCKS: Final = 1_000_000
_PLANS: Final = 2_000  # a round
_WORKERS: Final = {64: (100.0, 500.0), 1000: (1000.0, None)}  # microseconds allowed: p50, p99
_LAYOUT: Final = KvLayout(KvDtype.BFLOAT16, layers=30, kv_heads=3, head_dim=64)
_SIZE: Final = ModelSize(106_168_320, 96_576_768, 23_040, 30, 576)
_BLOCKS: Final = _PROMPT_TOKENS // _LAYOUT.block_tokens - 1

_LEARNED_FROM: Final = 30
_COUNTED: Final = 90
_CONCURRENCIES: Final = (1, 2, 4, 6)


def run(options: Options) -> None:
    """`rounds` times so many plans; one mixed run."""
    numbers = random.Random(5)  # a fleet, not secrets
    figures = [figure for count in _WORKERS for figure in _plan_figures(count, numbers, options.rounds)]
    with running_mesh(decode_count=1) as mesh:
        errors = asyncio.run(_mixed_run(mesh.router_address, numbers))
    for what, shares in (("time to first token", errors.first_token), ("step", errors.step)):
        figures += [
            Figure(f"predicted {what}: error, median of {len(shares)}", 100 * statistics.median(shares), "%", "<= 10"),
            Figure(f"predicted {what}: error, p95", 100 * _percentile(shares, 95), "%", "<= 30"),
        ]
    report("route", figures)


def _plan_figures(worker_count: int, numbers: random.Random, rounds: int) -> Iterator[Figure]:
    fleet = _fleet(worker_count // 4, numbers)
    workers = (*fleet.prefill, *fleet.decode)
    conditions = Conditions(_learned(workers, numbers))
    index, prompts = _index(sorted({one.node_id for one in workers}), numbers)
    whole_us, plan_us = [], []
    for _ in range(rounds):
        loads = {one.worker_id: _load(numbers) for one in workers}
        for _ in range(_PLANS):
            loads[numbers.choice(workers).worker_id] = _load(numbers)
            hashes, tie_break = numbers.choice(prompts), numbers.random()
            began_s = time.perf_counter()
            matches = index.match(hashes)
            found_s = time.perf_counter()
            plan(PlanRequest(_PROMPT_TOKENS), fleet, matches, loads, tie_break, conditions)
            ended_s = time.perf_counter()
            whole_us.append(1e6 * (ended_s - began_s))
            plan_us.append(1e6 * (ended_s - found_s))
    most_p50_us, most_p99_us = _WORKERS[worker_count]
    name = f"{worker_count} workers"
    p99_target = None if most_p99_us is None else f"<= {most_p99_us:g}"
    yield Figure(f"{name}: prefix and plan, p50", statistics.median(whole_us), "us", f"<= {most_p50_us:g}")
    yield Figure(f"{name}: prefix and plan, p99", _percentile(whole_us, 99), "us", p99_target)
    yield Figure(f"{name}:   plan() alone, p50", statistics.median(plan_us), "us")
    yield Figure(f"{name}:   plan() alone, p99", _percentile(plan_us, 99), "us")
    if worker_count == min(_WORKERS):
        yield Figure("hashing the prompt", _hashing_us(numbers), "us")


def _fleet(node_count: int, numbers: random.Random) -> FleetSnapshot:
    """Two workers of each role a node, all of unlike rates."""

    def worker(node: int, number: int, role: Role) -> Worker:
        rates = ChipRates(3e-4, 4e11 * numbers.uniform(0.5, 2), 2e10 * numbers.uniform(0.5, 2), 60.0, 0.1)
        return Worker(
            worker_id=f"n{node}-{role.value}-{number}",
            role=role,
            node_id=f"n{node}",
            model_digest="digest",
            layout=_LAYOUT,
            max_sequences=32,
            chip_class="cpu-compute",
            shares_cores=True,
            model_size=_SIZE,
            rates=rates,
        )

    def all_of(role: Role) -> tuple[Worker, ...]:
        return tuple(worker(node, number, role) for node in range(node_count) for number in range(2))

    return FleetSnapshot(all_of(Role.PREFILL), all_of(Role.DECODE))


def _load(numbers: random.Random) -> WorkerLoad:
    return WorkerLoad(numbers.randrange(12), numbers.randrange(2_000), numbers.randrange(20_000))


def _learned(workers: tuple[Worker, ...], numbers: random.Random) -> Corrections:
    corrections = Corrections()
    for one in workers:
        for amount in (1, 4, 8, 100, _PROMPT_TOKENS):
            for phase in Phase:
                corrections.learn(one.worker_id, phase, amount, numbers.uniform(0.5, 2))
    return corrections


def _index(nodes: list[str], numbers: random.Random) -> tuple[PrefixIndex, list[list[bytes]]]:
    """A full index, and prompts of which every second has a prefix of random length on up to three nodes."""
    index = PrefixIndex(capacity=_INDEX_BLOCKS)
    prompts = [[numbers.randbytes(16) for _ in range(_BLOCKS)] for _ in range(200)]
    held_blocks = 0
    while held_blocks < _INDEX_BLOCKS:
        index.store(numbers.choice(nodes), Tier.DEVICE, [numbers.randbytes(16) for _ in range(_BLOCKS)])
        held_blocks += _BLOCKS
    for hashes in prompts[::2]:
        for node_id in numbers.sample(nodes, 3):
            index.store(node_id, Tier.DEVICE, hashes[: numbers.randrange(1, _BLOCKS)])
    return index, prompts


def _hashing_us(numbers: random.Random) -> float:
    root, token_ids = root_hash("digest", "", ""), [numbers.randrange(49_152) for _ in range(_PROMPT_TOKENS)]
    seconds = []
    for _ in range(50):
        began_s = time.perf_counter()
        block_hashes(root, token_ids, _LAYOUT.block_tokens)
        seconds.append(time.perf_counter() - began_s)
    return 1e6 * statistics.median(seconds)


@dataclass(slots=True)
class _Errors:
    """Shares of what was measured."""

    first_token: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)

    def add(self, done: Completion) -> None:
        predicted, timings = done.plan.prediction, done.timings
        assert predicted is not None
        first_s = timings.time_to_first_token_s - timings.tokenize_s - timings.plan_s
        step_s = timings.decode_s / (done.usage.completion_tokens - 1)
        self.first_token.append(abs(predicted.time_to_first_token_s / first_s - 1))
        self.step.append(abs(predicted.time_per_output_token_s / step_s - 1))


async def _mixed_run(address: str, numbers: random.Random) -> _Errors:
    errors, asked = _Errors(), 0
    async with AsyncClient(address) as client:

        async def ask() -> Completion:
            await asyncio.sleep(numbers.random() * 0.3)
            return await client.generate(
                random_prompt(numbers, round(32 * (1000 / 32) ** numbers.random())),
                max_tokens=numbers.choice((16, 32, 64)),
                temperature=0,
                ignore_eos=True,
            )

        async def has_rates() -> bool:
            return (await client.generate([1, 2, 3], max_tokens=2, temperature=0)).plan.prediction is not None

        await eventually(has_rates)
        while len(errors.step) < _COUNTED:
            for done in await asyncio.gather(*(ask() for _ in range(numbers.choice(_CONCURRENCIES)))):
                asked += 1
                if asked > _LEARNED_FROM:
                    errors.add(done)
    return errors


def _percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]
