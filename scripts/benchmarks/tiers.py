"""A working set four times the DEVICE tier: hit rate and time to first token with HOST off, HOST on, and DISK on.

A mesh with room for 96 blocks in DEVICE, and 24 prompts of 512 tokens (16 blocks each) that are asked for in random
order, one after the other, with four tokens of answer. Blocks go to a lower tier from their second use on, so the first
two passes fill the tiers and are not counted. "DISK on" has a HOST tier as small as DEVICE before it, so that most of
the working set can lie on disk only; the file's pages may be in the system's cache, as they are for an operator.

Example:
  scripts/bench tiers --rounds 3
"""

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Any, Final

from forebay.client import AsyncClient, Usage
from forebay.models.default_model import resolve_model
from forebay.testing.mesh import running_mesh
from scripts.benchmarks.bare_engine import random_prompt
from scripts.benchmarks.kv_blocks import served_layout
from scripts.benchmarks.options import Options
from scripts.benchmarks.report import Figure, median, report

_PROMPTS: Final = 24
_PROMPT_TOKENS: Final = 512
_OUTPUT_TOKENS: Final = 4
_DEVICE_BLOCKS: Final = 96
_ROOM_BLOCKS: Final = 512
_FILLING_PASSES: Final = 2


@dataclass(slots=True)
class _Seen:
    """Of the passes that count."""

    first_token_s: list[float] = field(default_factory=list)
    cached_tokens: int = 0
    prompt_tokens: int = 0


def run(options: Options) -> None:
    """`rounds` passes over all prompts with each set of tiers."""
    block_bytes = served_layout(resolve_model(None)).block_bytes
    few, many = _DEVICE_BLOCKS * block_bytes, _ROOM_BLOCKS * block_bytes
    tiers: dict[str, dict[str, Any]] = {
        "HOST off": {"host_bytes": 0},
        "HOST on": {"host_bytes": many},
        "DISK on": {"host_bytes": few, "disk_bytes": many + (1 << 20)},
    }
    numbers = random.Random(11)  # prompts, not secrets
    prompts = [random_prompt(numbers, _PROMPT_TOKENS) for _ in range(_PROMPTS)]
    figures: list[Figure] = []
    for name, sizes in tiers.items():
        with running_mesh(device_bytes=few, **sizes) as mesh:
            seen = asyncio.run(_passes(mesh.router_address, prompts, options.rounds))
        ordered = sorted(seen.first_token_s)
        figures += [
            Figure(f"{name}: prompt tokens found", seen.cached_tokens / seen.prompt_tokens, ""),
            Figure(f"{name}: time to first token, p50", 1e3 * median(ordered), "ms"),
            Figure(f"{name}: time to first token, p95", 1e3 * ordered[int(0.95 * len(ordered))], "ms"),
        ]
    report("tiers", figures)


async def _passes(address: str, prompts: list[list[int]], rounds: int) -> _Seen:
    seen, order = _Seen(), random.Random(5)
    async with AsyncClient(address) as client:
        for number in range(_FILLING_PASSES + rounds):
            for prompt in order.sample(prompts, len(prompts)):
                first_token_s, usage = await _asked(client, prompt)
                if number >= _FILLING_PASSES:
                    seen.first_token_s.append(first_token_s)
                    seen.cached_tokens += usage.cached_tokens
                    seen.prompt_tokens += usage.prompt_tokens
    return seen


async def _asked(client: AsyncClient, prompt: list[int]) -> tuple[float, Usage]:
    """Seconds to the first token. More tokens are asked for, since a prompt whose first token ends it is not sealed."""
    began_s = time.perf_counter()
    first_token_s: float | None = None
    async with client.stream(prompt, max_tokens=_OUTPUT_TOKENS, temperature=0, ignore_eos=True) as stream:
        async for chunk in stream:
            if first_token_s is None and chunk.token_ids:
                first_token_s = time.perf_counter() - began_s
        usage = stream.completion.usage
    assert first_token_s is not None
    return first_token_s, usage
