"""Conversion where blocks consist of the parts of several ranks: part by part, by a converter that knows only parts.

The parts of all sources are sources of their own, and each part of the target is a target of its own.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from forebay.kernels.converter_run import converter_run
from forebay.kv.conversion import ConversionPlan, plan_conversion
from forebay.kv.layout import KvLayout


class _Convert(Protocol):
    def convert(self, sources: Sequence[Sequence[memoryview]], targets: Sequence[memoryview], token_count: int) -> None:
        """As BlockConverter.convert."""
        ...


class PartsConverter:
    """`forebay.kernels.converter.BlockConverter` for a plan whose blocks are in parts."""

    def __init__(self, plan: ConversionPlan, make: Callable[[ConversionPlan], _Convert]) -> None:
        """Args: make: the converter of a plan whose blocks are not in parts."""
        self.plan = plan
        sources = [part for source in plan.sources for part in source.parts]
        self._converters = [make(plan_conversion(sources, part)) for part in plan.target.parts]

    def convert(self, sources: Sequence[Sequence[memoryview]], targets: Sequence[memoryview], token_count: int) -> None:
        """As BlockConverter.convert."""
        run = converter_run(self.plan, sources, targets, token_count)
        source_parts = [
            part
            for layout, blocks in zip(self.plan.sources, run.sources, strict=True)
            for part in _parts(layout, [block.data for block in blocks])
        ]
        target_parts = _parts(self.plan.target, [block.data for block in run.targets])
        for converter, part in zip(self._converters, target_parts, strict=True):
            converter.convert(source_parts, part, token_count)


def _parts(layout: KvLayout, blocks: Sequence[memoryview]) -> list[list[memoryview]]:
    """[part][block]."""
    return [
        [block[offset : offset + part.block_bytes] for block in blocks]
        for part, offset in zip(layout.parts, layout.part_offsets_bytes, strict=True)
    ]
