"""How exactly a native engine computes."""

from dataclasses import dataclass

from forebay.kernels.cpu.packed_model import WeightPolicy


@dataclass(frozen=True, slots=True)
class NativePrecision:
    """Formats of weights and of what they are multiplied with.

    activation_bits: 8 or 16, of the integers that inputs to matrices in 4- or 8-bit blocks are rounded to, one scale
    per 32 numbers. Matrices of bfloat16 or float32 take their inputs in that format.
    """

    weights: WeightPolicy = WeightPolicy.BFLOAT16
    activation_bits: int = 16
