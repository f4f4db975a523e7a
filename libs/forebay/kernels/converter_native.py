"""Conversion of KV blocks by the native library. Mirrors the conversion's structs of `cpu/native/c_api.h`."""

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from forebay.kernels.converter_run import Block, converter_run
from forebay.kernels.cpu.library import NativeLibrary
from forebay.kv.conversion import ConversionPlan
from forebay.kv.layout import AxisOrder, KvDtype, KvLayout

_int32, _pointer = ctypes.c_int32, ctypes.c_void_p

_DTYPES: Final[Mapping[KvDtype, int]] = MappingProxyType(
    {
        KvDtype.FLOAT32: 0,
        KvDtype.BFLOAT16: 1,
        KvDtype.FLOAT16: 2,
        KvDtype.FLOAT8_E4M3: 3,
        KvDtype.INT8: 4,
    }
)
_ORDERS: Final[Mapping[AxisOrder, int]] = MappingProxyType(
    {AxisOrder.LAYER_KV_HEAD_TOKEN: 0, AxisOrder.LAYER_KV_TOKEN_HEAD: 1, AxisOrder.LAYER_KV_HEAD_PAIRED: 2}
)


class LayoutStruct(ctypes.Structure):
    """A KV layout."""

    _fields_ = [  # ctypes reads this list
        (name, _int32) for name in ("dtype", "order", "layers", "kv_heads", "head_dim", "block_tokens")
    ]


class HeadReadStruct(ctypes.Structure):
    """One head read."""

    _fields_ = [(name, _int32) for name in ("source", "first_source_head", "first_target_head", "head_count")]


class ConversionStruct(ctypes.Structure):
    """One run."""

    _fields_ = [
        ("sources", ctypes.POINTER(LayoutStruct)),
        ("target", ctypes.POINTER(LayoutStruct)),
        ("head_reads", ctypes.POINTER(HeadReadStruct)),
        *((name, _int32) for name in ("source_count", "head_read_count", "token_count")),
        ("source_blocks", _pointer),
        ("target_blocks", _pointer),
    ]


class NativeConverter:
    """`forebay.kernels.converter.BlockConverter` in C++. The interpreter's lock is not held while it computes."""

    def __init__(self, plan: ConversionPlan, library: NativeLibrary) -> None:
        self.plan = plan
        self._function = library.functions.forebay_convert
        self._sources = (LayoutStruct * len(plan.sources))(*map(_layout_struct, plan.sources))
        self._target = _layout_struct(plan.target)
        self._head_reads = (HeadReadStruct * len(plan.head_reads))(
            *(
                HeadReadStruct(read.source, read.first_source_head, read.first_target_head, read.head_count)
                for read in plan.head_reads
            )
        )

    def convert(self, sources: Sequence[Sequence[memoryview]], targets: Sequence[memoryview], token_count: int) -> None:
        """As BlockConverter.convert.

        Raises:
            MemoryError: there is none for the library's scratch rows.
        """
        run = converter_run(self.plan, sources, targets, token_count)
        source_blocks = _addresses(block for blocks in run.sources for block in blocks)
        target_blocks = _addresses(run.targets)
        conversion = ConversionStruct(
            self._sources,
            ctypes.pointer(self._target),
            self._head_reads,
            len(self._sources),
            len(self._head_reads),
            token_count,
            ctypes.addressof(source_blocks),
            ctypes.addressof(target_blocks),
        )
        if self._function(ctypes.byref(conversion)):
            raise MemoryError("no memory to convert KV blocks")


def _layout_struct(layout: KvLayout) -> LayoutStruct:
    return LayoutStruct(
        _DTYPES[layout.dtype],
        _ORDERS[layout.order],
        layout.layers,
        layout.kv_heads,
        layout.head_dim,
        layout.block_tokens,
    )


def _addresses(blocks: Iterable[Block]) -> ctypes.Array[ctypes.c_void_p]:
    addresses = [block.ctypes.data for block in blocks]
    return (_pointer * len(addresses))(*addresses)
