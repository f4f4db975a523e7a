"""Conversion of KV blocks between layouts: GB of source blocks per second on one core, every pair of dtypes.

Blocks of SmolLM2-135M's shape, more of them than the caches hold; native where there is a compiler, else numpy.
"""

import time
from dataclasses import dataclass, replace

import numpy as np

from forebay.kernels.converter import block_converter
from forebay.kernels.kv_numbers import encode
from forebay.kv.conversion import ConversionPlan, plan_conversion
from forebay.kv.layout import AxisOrder, KvDtype, KvLayout
from scripts.benchmarks.kv_blocks import LAYOUT
from scripts.benchmarks.options import Options
from scripts.benchmarks.report import Figure, median, report

_RUN_TOKENS = 4096
_TARGET_GB_S = ">= 2"
_INT8 = replace(LAYOUT, dtype=KvDtype.INT8)
_SHARD = replace(_INT8, block_tokens=16, first_kv_head=1, kv_heads=1, total_kv_heads=3)
_PAIRED = AxisOrder.LAYER_KV_HEAD_PAIRED


@dataclass(frozen=True, slots=True)
class _Case:
    name: str
    source: KvLayout
    target: KvLayout
    goal: str | None = None


def run(options: Options) -> None:
    """The named cases first, then all pairs of dtypes with the same order and block size."""
    figures = [Figure(case.name, _gb_per_second(case, options.rounds), "GB/s", case.goal) for case in _cases()]
    report("convert", figures)


def _cases() -> list[_Case]:
    paired = replace(LAYOUT, order=_PAIRED)
    named = [
        _Case("bfloat16 → int8", LAYOUT, _INT8, _TARGET_GB_S),
        _Case("bfloat16 → int8, 32 → 16 tokens, head 1 of 3", LAYOUT, _SHARD, _TARGET_GB_S),
        _Case("bfloat16 → int8, paired → token rows", paired, _INT8, _TARGET_GB_S),
        _Case("bfloat16 → int8, paired → token rows, 32 → 16 tokens, head 1 of 3", paired, _SHARD, _TARGET_GB_S),
        _Case("int8 → bfloat16, token rows → paired, 16 → 32 tokens", replace(_INT8, block_tokens=16), paired),
        _Case("bfloat16, paired → token rows", paired, LAYOUT),
        _Case("bfloat16, token rows → paired", LAYOUT, paired),
        _Case("bfloat16, 32 → 16 tokens", LAYOUT, replace(LAYOUT, block_tokens=16)),
    ]
    pairs = [(source, target) for source in KvDtype for target in KvDtype]
    return named + [
        _Case(f"{source.value} → {target.value}", replace(LAYOUT, dtype=source), replace(LAYOUT, dtype=target))
        for source, target in pairs
        if (source, target) != (KvDtype.BFLOAT16, KvDtype.INT8)
    ]


def _gb_per_second(case: _Case, rounds: int) -> float:
    """Counts the bytes of the source's heads that the target takes; one unmeasured round touches the memory."""
    plan = plan_conversion([case.source], case.target)
    converter = block_converter(plan)
    sources = [memoryview(_block(case.source, number)) for number in range(plan.source_block_count(_RUN_TOKENS))]
    targets = [memoryview(bytearray(case.target.block_bytes)) for _ in range(plan.target_block_count(_RUN_TOKENS))]
    converter.convert([sources], targets, _RUN_TOKENS)
    seconds = []
    for _ in range(rounds):
        began_s = time.perf_counter()
        converter.convert([sources], targets, _RUN_TOKENS)
        seconds.append(time.perf_counter() - began_s)
    return _read_bytes(plan) / median(seconds) / 1e9


def _read_bytes(plan: ConversionPlan) -> float:
    source = plan.sources[0]
    block_count = plan.source_block_count(_RUN_TOKENS)
    return block_count * source.block_bytes * plan.target.kv_heads / source.kv_heads


def _block(layout: KvLayout, seed: int) -> bytearray:
    random = np.random.default_rng(seed)
    block = bytearray(random.integers(0, 127, layout.block_bytes, np.uint8).tobytes())
    if layout.scale_offset_bytes is not None:
        scales = np.frombuffer(block, np.float32, offset=layout.scale_offset_bytes)
        scales[:] = random.random(scales.size, np.float32)
    else:
        numbers = random.normal(size=layout.block_bytes // layout.dtype.size_bytes).astype(np.float32)
        block[:] = encode(numbers, layout.dtype).tobytes()
    return block
