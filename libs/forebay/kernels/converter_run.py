"""The blocks of one run, seen as bytes and checked against the plan. Knows sizes, not contents."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forebay.errors import LayoutMismatchError
from forebay.kv.conversion import ConversionPlan
from forebay.kv.layout import KvLayout

Block = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class ConverterRun:
    """Blocks as arrays of block_bytes bytes that share the buffers' memory. sources: [source][block of the run]."""

    sources: list[list[Block]]
    targets: list[Block]


def converter_run(
    plan: ConversionPlan, sources: Sequence[Sequence[memoryview]], targets: Sequence[memoryview], token_count: int
) -> ConverterRun:
    """As `BlockConverter.convert` takes them.

    Raises:
        LayoutMismatchError: blocks are missing, too many or too small, or a target is not writable.
    """
    if token_count < 0:
        raise LayoutMismatchError(f"a run of {token_count} tokens", field="token_count")
    if len(sources) != len(plan.sources):
        raise LayoutMismatchError(f"{len(sources)} sources, the plan has {len(plan.sources)}", field="sources")
    counts = plan.source_block_count(token_count), plan.target_block_count(token_count)
    read = [_blocks("sources", layout, blocks, counts[0]) for layout, blocks in zip(plan.sources, sources, strict=True)]
    written = _blocks("targets", plan.target, targets, counts[1])
    if not all(block.flags.writeable for block in written):
        raise LayoutMismatchError("a target block is not writable", field="targets")
    return ConverterRun(read, written)


def _blocks(name: str, layout: KvLayout, buffers: Sequence[memoryview], count: int) -> list[Block]:
    blocks = [np.frombuffer(buffer, np.uint8)[: layout.block_bytes] for buffer in buffers]
    if len(blocks) != count or any(block.size < layout.block_bytes for block in blocks):
        sizes = sorted({block.size for block in blocks})
        raise LayoutMismatchError(
            f"{len(blocks)} {name} of {sizes} bytes; the run has {count} blocks of {layout.block_bytes} bytes",
            field=name,
        )
    return blocks
