"""What the mesh costs: time to first token and tokens/s against the same engine called in this process."""

import asyncio
import random
import time

from forebay.chips.chip_class import DECODE_DEFAULT
from forebay.client import AsyncClient, Completion
from forebay.host.cores import usable_cores
from forebay.models.default_model import resolve_model
from forebay.testing.mesh import running_mesh
from scripts.benchmarks.bare_engine import BareEngine, random_prompt
from scripts.benchmarks.options import Options
from scripts.benchmarks.report import Figure, median, report
from scripts.benchmarks.startup import resident_bytes

PROMPT_TOKENS = 32
OUTPUT_TOKENS = 128
CONCURRENCIES = (1, 8)
FIRST_TOKEN_REPEATS = 4
WHOLE, STREAMED = DELIVERIES = ("whole", "streamed")  # the answer at once, or as it comes


def run(options: Options) -> None:
    """Each round measures engine and mesh one after the other, so that the machine's drift meets both."""
    # Both may use all cores: the bare engine always, a worker of the mesh while no other one computes.
    bare = BareEngine(resolve_model(None), DECODE_DEFAULT, usable_cores())
    numbers = random.Random(7)  # prompts, not secrets
    first_bare: list[float] = []
    first_mesh: list[float] = []
    rates: dict[tuple[str, int], list[float]] = {}
    with running_mesh() as mesh:
        memory_gb = sum(resident_bytes(mesh.state_dir)) / 1e9
        for number in range(options.rounds + 1):
            is_warm = number > 0
            for _ in range(FIRST_TOKEN_REPEATS):
                bare_s = bare.generate([random_prompt(numbers, PROMPT_TOKENS)], max_tokens=1)[0]
                mesh_s = asyncio.run(_first_token_s(mesh.router_address, random_prompt(numbers, PROMPT_TOKENS)))
                if is_warm:
                    first_bare.append(bare_s)
                    first_mesh.append(mesh_s)
            for concurrency in CONCURRENCIES:
                prompts = [random_prompt(numbers, PROMPT_TOKENS) for _ in range(concurrency)]
                _, seconds, token_count = bare.generate(prompts, OUTPUT_TOKENS)
                if is_warm:
                    rates.setdefault(("bare", concurrency), []).append(token_count / seconds)
                for delivery in DELIVERIES:
                    prompts = [random_prompt(numbers, PROMPT_TOKENS) for _ in range(concurrency)]
                    mesh_rate = asyncio.run(_tokens_per_s(mesh.router_address, prompts, delivery))
                    if is_warm:
                        rates.setdefault((delivery, concurrency), []).append(mesh_rate)
    added_ms = 1e3 * median([mesh_s - bare_s for mesh_s, bare_s in zip(first_mesh, first_bare, strict=True)])
    figures = [
        Figure("time to first token, mesh", 1e3 * median(first_mesh), "ms"),
        Figure("time to first token, bare engine", 1e3 * median(first_bare), "ms"),
        Figure("time to first token added by the mesh", added_ms, "ms", "<= 10", "bare engine"),
    ]
    for concurrency in CONCURRENCIES:
        bare_rates = rates["bare", concurrency]
        figures.append(Figure(f"tokens/s at concurrency {concurrency}, bare engine", median(bare_rates), "1/s"))
        for delivery in DELIVERIES:
            name, mesh_rates = f"tokens/s at concurrency {concurrency}, mesh, {delivery}", rates[delivery, concurrency]
            ratio = median([ours / alone for ours, alone in zip(mesh_rates, bare_rates, strict=True)])
            figures += [
                Figure(name, median(mesh_rates), "1/s"),
                Figure(f"{name} / bare", ratio, "", ">= 0.9", "bare engine"),
            ]
    report("mesh", [*figures, Figure("idle mesh, processes and shared memory", memory_gb, "GB", "<= 2.5")])


async def _first_token_s(address: str, prompt: list[int]) -> float:
    async with AsyncClient(address) as client:
        await client.fleet()  # connects, as a client that lives longer has done
        began_s = time.perf_counter()
        async with client.stream(prompt, max_tokens=1, temperature=0, ignore_eos=True) as stream:
            async for chunk in stream:
                if chunk.token_ids:
                    return time.perf_counter() - began_s
    raise RuntimeError("the mesh sent no token")


async def _tokens_per_s(address: str, prompts: list[list[int]], delivery: str) -> float:
    async def ask(prompt: list[int]) -> Completion:
        if delivery == WHOLE:
            return await client.generate(prompt, max_tokens=OUTPUT_TOKENS, temperature=0, ignore_eos=True)
        return await client.stream(prompt, max_tokens=OUTPUT_TOKENS, temperature=0, ignore_eos=True).finish()

    async with AsyncClient(address) as client:
        await client.fleet()
        began_s = time.perf_counter()
        completions = await asyncio.gather(*(ask(prompt) for prompt in prompts))
        seconds = time.perf_counter() - began_s
    return sum(completion.usage.completion_tokens for completion in completions) / seconds
