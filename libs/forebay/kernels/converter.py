"""What carries out a planned conversion of KV blocks, and which implementation this machine gets.

Knows both implementations, which give the same bits. Does not know where blocks lie or when they are converted.
"""

import logging
from collections.abc import Sequence
from typing import Protocol

from forebay.kernels.converter_native import NativeConverter
from forebay.kernels.converter_parts import PartsConverter
from forebay.kernels.converter_reference import ReferenceConverter
from forebay.kernels.cpu.build import NativeUnavailableError, Progress
from forebay.kernels.cpu.library import load_library
from forebay.kv.conversion import ConversionPlan

_log = logging.getLogger(__name__)


class BlockConverter(Protocol):
    """Converts runs of blocks as one plan says. May be called by several threads at once."""

    plan: ConversionPlan

    def convert(self, sources: Sequence[Sequence[memoryview]], targets: Sequence[memoryview], token_count: int) -> None:
        """Fills the target's blocks from the sources' blocks.

        Every byte of a target block is written; tokens beyond the run become zeros. Bytes of source blocks beyond the
        run are not looked at.

        Args:
            sources: for each of the plan's sources its blocks of the run, `plan.source_block_count(token_count)`
                many, each of at least its layout's block_bytes.
            targets: writable, `plan.target_block_count(token_count)` many.
            token_count: tokens of the run, which begins where blocks of both layouts begin.

        Raises:
            LayoutMismatchError: blocks are missing, too many or too small.
        """
        ...


def block_converter(plan: ConversionPlan, progress: Progress = lambda line: None) -> BlockConverter:
    """The native converter, or the reference where the native library cannot be had.

    Args:
        progress: told what is compiled, which happens once per machine.
    """
    try:
        library = load_library(progress=progress)
    except NativeUnavailableError as error:
        _log.warning("KV blocks are converted by numpy, which is slower: %s", error.message)
        return reference_converter(plan)
    if plan.is_in_parts:
        return PartsConverter(plan, lambda part: NativeConverter(part, library))
    return NativeConverter(plan, library)


def reference_converter(plan: ConversionPlan) -> BlockConverter:
    """The one in numpy: at once, on any machine, and with the native one's bits."""
    return PartsConverter(plan, ReferenceConverter) if plan.is_in_parts else ReferenceConverter(plan)
