"""The chip classes we know: device, kernels, precision and threads of each.

Knows names and settings only: no tensor library, no device is touched, nothing is measured here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final

from forebay.errors import StartError
from forebay.kv.layout import KvDtype


class NumberFormat(Enum):
    """Format of weights. The values are those of torch; INT8, with a scale per 32 numbers, only native kernels know."""

    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"
    INT8 = "int8"


class KernelSet(Enum):
    """Whose implementation of the kernel port computes."""

    NATIVE = "native"  # the C++ library
    TORCH = "torch"  # the reference, on any machine


DEFAULT_WATTS: Final = 60.0
"""A few cores of a server's processor under load, with their part of memory and supply."""
DEFAULT_USD_PER_HOUR: Final = 0.10
"""A rented virtual machine of two cores."""
_STEP_OVERHEAD_S: Final = MappingProxyType({KernelSet.NATIVE: 0.0003, KernelSet.TORCH: 0.003})


@dataclass(frozen=True, slots=True)
class ChipClass:
    """A kind of device and how we run it. Workers of one class produce the same bits.

    weight_dtype: of matrices that the model file does not hold in blocks. The native kernels keep blocks of Q4_0, Q4_1
    and Q8_0 as they are, and round those of Q4_K and Q6_K to INT8. Norm weights and the residual stream are float32.
    kv_dtype, block_tokens: of the KV that it reads and writes; the native kernels know only bfloat16 and float32.
    activation_bits: 8 or 16, of the integers that the native kernels round inputs to such blocks to, in groups of 32.
    chunk_tokens: most prompt tokens of one step, unless a worker is told otherwise.
    threads: most cores of one step; None: all that the worker may use. Changes the speed, never the bits.
    ranks: degree of tensor parallelism: heads and feed-forward are cut among so many, whose parts of a sum are added in
    their order. Torch's kernels only.
    watts, usd_per_hour: of the device while it is busy; a fleet file says better.
    """

    name: str
    device: str  # torch's device type
    kernels: KernelSet
    weight_dtype: NumberFormat
    kv_dtype: KvDtype
    block_tokens: int = 32
    activation_bits: int = 16
    chunk_tokens: int = 256
    threads: int | None = None
    ranks: int = 1
    watts: float = DEFAULT_WATTS
    usd_per_hour: float = DEFAULT_USD_PER_HOUR

    @property
    def step_overhead_s(self) -> float:
        """Of a step whatever is in it: the interpreter's turns before and after the kernels."""
        return _STEP_OVERHEAD_S[self.kernels]

    @property
    def arithmetic(self) -> str:
        """Equal where two classes compute the same bits from the same weights and KV: "native-bfloat16-a16"."""
        activations = f"-a{self.activation_bits}" if self.kernels is KernelSet.NATIVE else ""
        ranks = f"-tp{self.ranks}" if self.ranks > 1 else ""
        return f"{self.kernels.value}-{self.weight_dtype.value}{activations}{ranks}"


_BF16, _F32, _INT8 = NumberFormat.BFLOAT16, NumberFormat.FLOAT32, NumberFormat.INT8
_KV_BF16, _KV_F32 = KvDtype.BFLOAT16, KvDtype.FLOAT32

BUILT_IN: Mapping[str, ChipClass] = MappingProxyType(
    {
        chip_class.name: chip_class
        for chip_class in (
            ChipClass("cpu-compute", "cpu", KernelSet.NATIVE, _BF16, _KV_BF16, chunk_tokens=512),
            ChipClass("cpu-bandwidth", "cpu", KernelSet.NATIVE, _BF16, _KV_BF16),
            ChipClass("cpu-compute-a8", "cpu", KernelSet.NATIVE, _BF16, _KV_BF16, activation_bits=8, chunk_tokens=512),
            ChipClass("cpu-bandwidth-a8", "cpu", KernelSet.NATIVE, _BF16, _KV_BF16, activation_bits=8),
            ChipClass("cpu-compute-w8", "cpu", KernelSet.NATIVE, _INT8, _KV_BF16, chunk_tokens=512),
            ChipClass("cpu-bandwidth-w8", "cpu", KernelSet.NATIVE, _INT8, _KV_BF16),
            ChipClass("cpu-bf16", "cpu", KernelSet.TORCH, _BF16, _KV_BF16),
            ChipClass("cpu-f32", "cpu", KernelSet.TORCH, _F32, _KV_F32),
            ChipClass("cpu-f32-kv8", "cpu", KernelSet.TORCH, _F32, KvDtype.INT8, block_tokens=16),
            ChipClass("cpu-f32-tp2", "cpu", KernelSet.TORCH, _F32, _KV_F32, ranks=2),
            ChipClass("cpu-f32-tp3", "cpu", KernelSet.TORCH, _F32, _KV_F32, ranks=3),
        )
    }
)
"""Chip classes by name. `cpu-compute` and `cpu-bandwidth` give the same bits, so that a node may run its prefill
workers as one and its decode workers as the other; likewise their faster `-a8` forms, which round activations to 8 bits
as most CPU engines do, and their `-w8` forms, which round a model's 16-bit weights to 8. `cpu-bf16` needs no compiler;
`cpu-f32` is the reference of the tests, `cpu-f32-kv8` the same with KV of 8 bits in blocks of 16 tokens, and
`cpu-f32-tp2` and `-tp3` the same cut among 2 and 3 ranks."""

PREFILL_DEFAULT = "cpu-compute"
DECODE_DEFAULT = "cpu-bandwidth"
WITHOUT_COMPILER = "cpu-bf16"
"""What a node's services are started with where the native kernels cannot be had."""


def chip_class_named(name: str) -> ChipClass:
    """The built-in chip class of that name.

    Raises:
        StartError: there is none; the message lists those that exist.
    """
    try:
        return BUILT_IN[name]
    except KeyError:
        known = ", ".join(sorted(BUILT_IN))
        raise StartError(f"unknown chip class {name!r}; choose one of: {known}", field="chip_class") from None
