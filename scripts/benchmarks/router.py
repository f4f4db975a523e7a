"""What a router costs: requests and tokens a second, and CPU seconds of its process for each.

Real routers, tokenizer, KV-cache service and NATS as processes of their own, and the real decode service over an engine
that says its prompt again at once. A process of its own asks for 32 answers at a time, with short prompts of their own.

"gathered" is a worker as it comes: it tells first tokens and ends at once, and others only some times a second. "each
step told" makes a step take 10 ms and tells each: every token is a message to its client, which is the most a router
can be given to do for it. "CPU a token" is what a longer answer costs more than one of 16 tokens, for each token.

All processes share the machine's cores. Where there are few, requests/s say what all of them cost together, and a
second router cannot double them; "CPU a request" of each process says who has the cores, and what a router could do
with a core of its own.

Examples:
  scripts/bench router              five rounds, two minutes
  scripts/bench router --rounds 1
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from forebay.host.cores import usable_cores
from forebay.testing.mesh import RunningMesh, running_mesh
from scripts.benchmarks.answering_process import AnsweringProcess
from scripts.benchmarks.options import Options
from scripts.benchmarks.report import Figure, median, percentile, report

CONCURRENCY: Final = 32
PROMPT_WORDS: Final = 31  # some 32 tokens
SHORT_TOKENS, LONG_TOKENS = 16, 256
ROUND_S: Final = 4.0
WARM_UP_S: Final = 2.0
STEP_MS: Final = 10
_LOG: Final = Path(".bench/router-load.log")
_EACH_STEP: Final = ("--gather-ms", "0", "--step-ms", str(STEP_MS))


@dataclass(frozen=True, slots=True)
class Measured:
    """One measurement. cpu_s: of each process, by the name of its service."""

    seconds: float
    requests: int
    tokens: int
    chunks: int
    prompt_tokens: int
    first_token_s: list[float]
    cpu_s: dict[str, float]

    @property
    def router_us(self) -> float:
        """CPU microseconds of the routers for a request."""
        return self.us_of("router")

    def us_of(self, role: str) -> float:
        """CPU microseconds of a role's processes for a request."""
        return 1e6 * sum(spent for name, spent in self.cpu_s.items() if name.startswith(role)) / self.requests

    @property
    def requests_per_s(self) -> float:
        """Of all routers."""
        return self.requests / self.seconds

    @property
    def tokens_per_request(self) -> float:
        """That were answered."""
        return self.tokens / self.requests


class Bench:
    """One mesh and the process that asks it."""

    def __init__(self, mesh: RunningMesh, load: AnsweringProcess) -> None:
        self._mesh = mesh
        self._load = load
        self._processes = {one.name: psutil.Process(one.process.pid) for one in mesh.record.services}

    def measure(self, output_tokens: int, routers: int = 1, seconds: float = ROUND_S) -> Measured:
        """Asks the first so many routers for so many seconds."""
        command = {
            "do": "load",
            "addresses": self._mesh.router_addresses[:routers],
            "concurrency": CONCURRENCY,
            "output_tokens": output_tokens,
            "prompt_words": PROMPT_WORDS,
            "seconds": seconds,
        }
        before = self._cpu_s()
        said = self._load.ask(command)
        after = self._cpu_s()
        cpu_s = {name: after[name] - before[name] for name in after} | {"client": said.pop("cpu_s")}
        return Measured(cpu_s=cpu_s, **said)

    def _cpu_s(self) -> dict[str, float]:
        times = {name: process.cpu_times() for name, process in self._processes.items()}
        return {name: spent.user + spent.system for name, spent in times.items()}


def run(options: Options) -> None:
    """Rounds of all figures in turn, so that the machine's drift meets them alike."""
    with _bench(router_count=2) as bench:
        gathered = [
            (bench.measure(SHORT_TOKENS), bench.measure(LONG_TOKENS), bench.measure(SHORT_TOKENS, routers=2))
            for _ in range(options.rounds)
        ]
    with _bench(decode_flags=_EACH_STEP) as bench:
        told = [(bench.measure(SHORT_TOKENS), bench.measure(LONG_TOKENS)) for _ in range(options.rounds)]
    one, long, two = (list(column) for column in zip(*gathered, strict=True))
    short_told, long_told = (list(column) for column in zip(*told, strict=True))
    report(
        "router",
        [
            *_request_figures(one),
            *_token_figures("gathered", one, long),
            *_token_figures(f"each step told, of {STEP_MS} ms", short_told, long_told),
            *_scaling_figures(one, two),
        ],
    )


@contextmanager
def _bench(router_count: int = 1, decode_flags: tuple[str, ...] = ()) -> Iterator[Bench]:
    """A warm mesh with room for more than is asked of it, so that nobody waits at its gate."""
    flags = {"decode": ("--max-sequences", str(4 * CONCURRENCY), *decode_flags)}
    modules = {"decode": "scripts.benchmarks.echo_worker"}
    options: dict[str, Any] = {
        "router_count": router_count,
        "prefill_count": 0,
        "extra_arguments": flags,
        "modules": modules,
    }
    _LOG.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "scripts.benchmarks.router_load"]
    with (
        running_mesh(**options) as mesh,
        AnsweringProcess(command, os.environ, _LOG) as load,
    ):
        bench = Bench(mesh, load)
        bench.measure(SHORT_TOKENS, routers=router_count, seconds=WARM_UP_S)
        yield bench


def _request_figures(one: list[Measured]) -> list[Figure]:
    name = f"1 router, {SHORT_TOKENS} tokens"
    first_token_s = [seconds for measured in one for seconds in measured.first_token_s]
    roles = ("router", "tokenizer", "decode", "kvcache", "nats", "client")
    return [
        Figure("prompt", _median(one, lambda it: it.prompt_tokens / it.requests), "tokens"),
        Figure(f"{name}: requests", _median(one, lambda it: it.requests_per_s), "1/s"),
        *(Figure(f"{name}: CPU a request, {role}", _median(one, _us_of(role)), "µs") for role in roles),
        Figure(f"{name}: requests a core of the router's", _median(one, lambda it: 1e6 / it.router_us), "1/s"),
        Figure(
            f"{name}: router's share of a core", _median(one, lambda it: it.router_us * it.requests_per_s / 1e4), "%"
        ),
        Figure(f"{name}: time to first token, p50", 1e3 * percentile(first_token_s, 50), "ms"),
        Figure(f"{name}: time to first token, p99", 1e3 * percentile(first_token_s, 99), "ms"),
    ]


def _token_figures(how: str, short: list[Measured], long: list[Measured]) -> list[Figure]:
    more_us = [
        (many.router_us - few.router_us) / (many.tokens_per_request - few.tokens_per_request)
        for few, many in zip(short, long, strict=True)
    ]
    return [
        Figure(
            f"{how}: tokens relayed, {LONG_TOKENS} a request", _median(long, lambda it: it.tokens / it.seconds), "1/s"
        ),
        Figure(f"{how}: messages to a client", _median(long, lambda it: it.chunks / it.requests), ""),
        Figure(f"{how}: CPU a request, router, {SHORT_TOKENS} tokens", _median(short, _us_of("router")), "µs"),
        Figure(f"{how}: CPU a token, router", median(more_us), "µs"),
    ]


def _scaling_figures(one: list[Measured], two: list[Measured]) -> list[Figure]:
    ratios = [both.requests_per_s / alone.requests_per_s for alone, both in zip(one, two, strict=True)]
    costs = [both.router_us / alone.router_us for alone, both in zip(one, two, strict=True)]
    return [
        Figure(f"2 routers, {SHORT_TOKENS} tokens: requests", _median(two, lambda it: it.requests_per_s), "1/s"),
        Figure("2 routers / 1: requests", median(ratios), "", ">= 1.8", f"1 router; {usable_cores()} cores for all"),
        Figure("2 routers / 1: CPU a request, router", median(costs), "", None, "1 router"),
    ]


def _us_of(role: str) -> Callable[[Measured], float]:
    return lambda measured: measured.us_of(role)


def _median(measured: list[Measured], value: Callable[[Measured], Any]) -> float:
    return median([value(one) for one in measured])
