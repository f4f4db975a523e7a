"""Two tiers on one mesh, and six ways to route: how many requests are answered in time, and what that costs BATCH.

Tiers: eight chats (REALTIME: prompts of 60 tokens, 32 tokens of answer, a second of thought between two) beside jobs
that never end (BATCH: prompts of 2,000 tokens, 64 of answer, twelve at a time), all prompts unlike. The same load as
the mesh serves it by default; with everything in one tier, first come, first served; and with a router that looks at
load alone. REALTIME's own work: the chats that were answered, as a share of those that eight without a thought between
two get answered when nobody else is there; of the rest of the time BATCH is to make 0.8 of what it makes alone in as
much. BATCH counts tokens of prompts as their first token comes, and of answers.

Routing: a mesh of two prefill workers (cpu-compute) and two decode workers (cpu-bandwidth), and one open load of chats,
three in four short, the others of 500 tokens, half of which continue one of four long conversations; the same
arrivals for each policy, 0.7 of what eight such chats at a time get answered on this machine. Goodput: answers a second
whose first token came within 500 ms and whose tokens took 50 ms or less. Each round measures everything once; rounds
are interleaved, medians count.

Example:
  scripts/bench goodput --rounds 3     some fifteen minutes
"""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from forebay.client import AsyncClient
from forebay.errors import ForebayError
from forebay.routing.baseline import Policy
from forebay.testing.mesh import RunningMesh, running_mesh
from scripts.benchmarks.bare_engine import random_prompt
from scripts.benchmarks.options import Options
from scripts.benchmarks.report import Figure, median, percentile, report

FIRST_TOKEN_S: Final = 0.5
TOKEN_S: Final = 0.05

_CHATS, _CHAT_PROMPT, _CHAT_OUTPUT, _THOUGHT_S = 8, 60, 32, 1.0
_JOBS, _JOB_PROMPT, _JOB_OUTPUT = 12, 2_000, 64
_PHASE_S: Final = 20.0
_SETTLE_S: Final = 4.0
_WARM_UP_S: Final = 6.0

_ROUTED_S: Final = 20.0
_LOAD: Final = 0.7  # arrivals, as a share of what is answered to _LANES at a time
_LANES, _CAPACITY_S = 8, 10.0
_SHORT, _LONG, _CONVERSATIONS = 60, 500, 4
_ROUTED_OUTPUT: Final = 24


@dataclass(slots=True)
class _Phase:
    """What happened in one phase, after it had settled."""

    seconds: float = _PHASE_S
    first_token_s: list[float] = field(default_factory=list)  # of REALTIME
    batch_tokens: int = 0
    chat_count: int = 0  # answered
    failures: list[str] = field(default_factory=list)

    @property
    def batch_rate(self) -> float:
        """Tokens per second."""
        return self.batch_tokens / self.seconds

    @property
    def chat_rate(self) -> float:
        """Answers per second."""
        return self.chat_count / self.seconds


def run(options: Options) -> None:
    """`rounds` times each phase and policy."""
    phases: dict[str, list[_Phase]] = {}
    goodputs: dict[Policy, list[_Routed]] = {policy: [] for policy in Policy}
    capacities: list[float] = []
    policies = list(Policy)
    for number in range(options.rounds):
        numbers = random.Random(number)  # prompts, not secrets
        with running_mesh() as mesh:
            for name in ("BATCH alone", "REALTIME alone", "REALTIME without thought", "tiers", "FIFO"):
                phases.setdefault(name, []).append(_phase(mesh, name, numbers))
        with running_mesh(extra_arguments={"router": ("--routing-policy", Policy.LEAST_LOAD.value)}) as mesh:
            phases.setdefault("least-load", []).append(_phase(mesh, "FIFO", numbers))
        with running_mesh(prefill_count=2, decode_count=2) as mesh:
            capacities.append(asyncio.run(_capacity(mesh, number)))
        first = number % len(policies)  # the machine drifts: none is always measured as early as another
        for policy in (*policies[first:], *policies[:first]):
            flags = {"router": ("--routing-policy", policy.value)}
            with running_mesh(prefill_count=2, decode_count=2, extra_arguments=flags) as mesh:
                goodputs[policy].append(asyncio.run(_routed(mesh, number, _LOAD * capacities[-1])))
    capacity = Figure(f"{_LANES} chats at a time", median(capacities), "answers/s")
    report("goodput", [*_tier_figures(phases), capacity, *_policy_figures(goodputs)])


def _phase(mesh: RunningMesh, name: str, numbers: random.Random) -> _Phase:
    return asyncio.run(_run_phase(mesh, name, numbers))


async def _run_phase(mesh: RunningMesh, name: str, numbers: random.Random) -> _Phase:
    phase = _Phase()
    async with AsyncClient(mesh.router_address) as client:
        await _warm_up(client)
        tier = "batch" if name == "FIFO" else "realtime"  # in one tier the first comes first
        chats = 0 if name == "BATCH alone" else _CHATS
        jobs = 0 if name.startswith("REALTIME") else _JOBS
        thought_s = 0.0 if name == "REALTIME without thought" else _THOUGHT_S
        lanes = [
            asyncio.create_task(_chat(client, phase, tier, thought_s, random.Random(numbers.random())))
            for _ in range(chats)
        ]
        lanes += [asyncio.create_task(_job(client, phase, random.Random(numbers.random()))) for _ in range(jobs)]
        await asyncio.sleep(_SETTLE_S)
        phase.first_token_s.clear()
        phase.failures.clear()
        phase.batch_tokens = phase.chat_count = 0
        began_s = time.perf_counter()
        await asyncio.sleep(_PHASE_S)
        phase.seconds = time.perf_counter() - began_s
        for lane in lanes:
            lane.cancel()
        await asyncio.gather(*lanes, return_exceptions=True)
    return phase


async def _chat(client: AsyncClient, phase: _Phase, tier: Any, thought_s: float, numbers: random.Random) -> None:
    await asyncio.sleep(numbers.random() * thought_s)
    while True:
        prompt, began_s, is_first = random_prompt(numbers, _CHAT_PROMPT), time.perf_counter(), True
        try:
            async with client.stream(
                prompt, max_tokens=_CHAT_OUTPUT, temperature=0, ignore_eos=True, qos_tier=tier, timeout_s=60
            ) as stream:
                async for chunk in stream:
                    if is_first and chunk.token_ids:
                        phase.first_token_s.append(time.perf_counter() - began_s)
                        is_first = False
            phase.chat_count += 1
        except ForebayError as error:
            phase.failures.append(f"chat: {error.reason}")
        await asyncio.sleep(numbers.expovariate(1) * thought_s)


async def _job(client: AsyncClient, phase: _Phase, numbers: random.Random) -> None:
    while True:
        prompt, is_first = random_prompt(numbers, _JOB_PROMPT), True
        try:
            async with client.stream(
                prompt, max_tokens=_JOB_OUTPUT, temperature=0, ignore_eos=True, qos_tier="batch", timeout_s=300
            ) as stream:
                async for chunk in stream:
                    phase.batch_tokens += len(chunk.token_ids) + (_JOB_PROMPT if is_first and chunk.token_ids else 0)
                    is_first = is_first and not chunk.token_ids
        except ForebayError as error:
            phase.failures.append(f"job: {error.reason}")
            await asyncio.sleep(0.5)


@dataclass(slots=True)
class _Routed:
    """One run of the open load. in_time: answers that met both objectives."""

    seconds: float = 0.0
    asked: int = 0
    in_time: int = 0
    first_token_s: list[float] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


async def _capacity(mesh: RunningMesh, seed: int) -> float:
    """Answers a second when the next chat comes as soon as one is answered."""
    numbers, done = random.Random(2_000 + seed), _Routed()
    conversations = [random_prompt(numbers, _LONG) for _ in range(_CONVERSATIONS)]
    async with AsyncClient(mesh.router_address) as client:
        await _warm_up(client)

        async def lane() -> None:
            while time.perf_counter() < ends_s:
                await _ask(client, _routed_prompt(numbers, conversations), done)

        ends_s = time.perf_counter() + _CAPACITY_S
        await asyncio.gather(*(lane() for _ in range(_LANES)))
    return len(done.first_token_s) / (_CAPACITY_S + time.perf_counter() - ends_s)


async def _routed(mesh: RunningMesh, seed: int, arrivals_per_s: float) -> _Routed:
    numbers, routed = random.Random(1_000 + seed), _Routed()
    conversations = [random_prompt(numbers, _LONG) for _ in range(_CONVERSATIONS)]
    arrivals: list[tuple[float, list[int]]] = []
    at_s = 0.0
    while at_s < _ROUTED_S:
        at_s += numbers.expovariate(arrivals_per_s)
        arrivals.append((at_s, _routed_prompt(numbers, conversations)))
    async with AsyncClient(mesh.router_address) as client:
        await _warm_up(client)
        for prompt in conversations:
            await client.generate(prompt, max_tokens=8, temperature=0, ignore_eos=True)
        began_s = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for at_s, prompt in arrivals:
                await asyncio.sleep(max(0.0, began_s + at_s - time.perf_counter()))
                group.create_task(_ask(client, prompt, routed))
        routed.seconds = time.perf_counter() - began_s
    return routed


def _routed_prompt(numbers: random.Random, conversations: Sequence[list[int]]) -> list[int]:
    kind = numbers.random()
    if kind < 0.75:  # three in four are short
        return random_prompt(numbers, _SHORT)
    if kind < 0.875:  # half of the others are new
        return random_prompt(numbers, _LONG)
    return numbers.choice(conversations) + random_prompt(numbers, _SHORT)


async def _ask(client: AsyncClient, prompt: list[int], routed: _Routed) -> None:
    routed.asked += 1
    began_s, first_s, count = time.perf_counter(), None, 0
    try:
        async with client.stream(
            prompt, max_tokens=_ROUTED_OUTPUT, temperature=0, ignore_eos=True, timeout_s=60
        ) as stream:
            async for chunk in stream:
                if chunk.token_ids and first_s is None:
                    first_s = time.perf_counter() - began_s
                count += len(chunk.token_ids)
            if stream.plan is not None:
                routed.reasons.append(stream.plan.reason)
    except ForebayError:
        return
    if first_s is None or count < 2:  # a time per token needs two
        return
    routed.first_token_s.append(first_s)
    token_s = (time.perf_counter() - began_s - first_s) / (count - 1)
    routed.in_time += first_s <= FIRST_TOKEN_S and token_s <= TOKEN_S


async def _warm_up(client: AsyncClient) -> None:
    """Returns when the workers have told their rates, as far as plans show that, and in any case after a while."""
    ends_s = time.monotonic() + _WARM_UP_S
    while time.monotonic() < ends_s:
        done = await client.generate([1, 2, 3], max_tokens=16, temperature=0, ignore_eos=True)
        if done.plan.prediction is not None:
            return
        await asyncio.sleep(0.1)


def _tier_figures(phases: dict[str, list[_Phase]]) -> list[Figure]:
    alone, most = phases["BATCH alone"], phases["REALTIME without thought"]
    figures = [
        Figure("BATCH alone", median([one.batch_rate for one in alone]), "tokens/s"),
        Figure("REALTIME alone: first token, p99", median([_ms(one, 99) for one in phases["REALTIME alone"]]), "ms"),
        Figure("REALTIME alone, without thought", median([one.chat_rate for one in most]), "answers/s"),
    ]
    for name in ("tiers", "FIFO", "least-load"):
        judged = name == "tiers"
        failures = [failure for one in phases[name] for failure in one.failures]
        kept = [
            one.batch_rate / (batch.batch_rate * (1 - one.chat_rate / full.chat_rate))
            for one, batch, full in zip(phases[name], alone, most, strict=True)
        ]
        figures += [
            Figure(f"{name}: REALTIME first token, p50", median([_ms(one, 50) for one in phases[name]]), "ms"),
            Figure(
                f"{name}: REALTIME first token, p99",
                median([_ms(one, 99) for one in phases[name]]),
                "ms",
                "<= 500" if judged else None,
            ),
            Figure(f"{name}: REALTIME", median([one.chat_rate for one in phases[name]]), "answers/s"),
            Figure(f"{name}: failed", len(failures), "", "<= 0" if judged else None, ", ".join(sorted(set(failures)))),
            Figure(f"{name}: BATCH", median([one.batch_rate for one in phases[name]]), "tokens/s"),
            Figure(
                f"{name}: BATCH of what REALTIME's own work leaves",
                median(kept),
                "",
                ">= 0.8" if judged else None,
                "BATCH alone",
            ),
        ]
    return figures


def _policy_figures(goodputs: dict[Policy, list[_Routed]]) -> list[Figure]:
    figures = []
    for policy, runs in goodputs.items():
        figures += [
            Figure(f"{policy}: goodput", median([one.in_time / one.seconds for one in runs]), "1/s"),
            Figure(f"{policy}:   share in time", median([one.in_time / one.asked for one in runs]), ""),
            *(
                Figure(
                    f"{policy}:   first token, p{percent}",
                    median([1e3 * percentile(one.first_token_s, percent) for one in runs]),
                    "ms",
                )
                for percent in (50, 99)
            ),
        ]
    ours = goodputs[Policy.COST]
    for policy in Policy:
        if policy is not Policy.COST:
            # Of all rounds together: a single one has too few requests to tell a few per cent apart.
            ratio = sum(one.in_time for one in ours) / max(1, sum(one.in_time for one in goodputs[policy]))
            figures.append(Figure(f"goodput of cost / {policy}", ratio, "", ">= 1", policy.value))
    return figures


def _ms(phase: _Phase, percent: int) -> float:
    return 1e3 * percentile(phase.first_token_s, percent)
