"""The tensor operations a decoder step is made of, whatever device computes them.

Knows shapes and the paged KV arena. Does not know models, weights files, sampling or scheduling.

Only `TorchKernels` implements it: a GPU's kernels will, operation by operation. The native engine crosses Python once a
step, so its seam is a step, `forebay.engine.types.Engine`, and its operations are those of its library.

Every implementation keeps **batch invariance**: a row of a result has the same bits whatever other rows are computed
with it, however its sequence is cut into spans, and whichever number of threads computes it.

Shape suffixes: M rows (tokens) of the step, K inputs, N outputs, I intermediate size, H query heads, G kv heads,
D head_dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from torch import Tensor

PlanT = TypeVar("PlanT")


@dataclass(frozen=True, slots=True)
class Span:
    """One sequence's rows in a step: positions start_token .. end_token - 1.

    The block table covers at least end_token tokens; KV of positions before start_token is in its blocks already.
    """

    start_token: int
    token_count: int
    block_table: Sequence[int]

    @property
    def end_token(self) -> int:
        """Tokens the last row of the span attends to, itself included."""
        return self.start_token + self.token_count


@dataclass(frozen=True, slots=True)
class HeadShape:
    """Attention heads of one layer; each group of query_heads / kv_heads query heads shares a kv head."""

    query_heads: int
    kv_heads: int
    head_dim: int

    @property
    def group_size(self) -> int:
        """Query heads per kv head."""
        return self.query_heads // self.kv_heads


class RopeRows(NamedTuple):
    """Rotation of each row of a step, float32; a head's first half is its real part, its second the imaginary one."""

    cos: Tensor  # [M, 1, 1, D/2]
    signed_sin: Tensor  # [M, 1, 2, D/2]: -sin, sin


class Kernels(Protocol[PlanT]):
    """Operations over one arena. Activations have one dtype, the residual stream is float32."""

    def begin_step(self, spans: Sequence[Span]) -> PlanT:
        """Prepares a step whose rows are those of the spans, one after the other.

        Blocks that the spans begin but do not fill are zeroed, so that no stale value is ever read as KV.
        """
        ...

    def linear(self, x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
        """x · weightᵀ + bias, [M, N] in the activation dtype."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Root-mean-square norm over the last axis, computed in float32, returned in the activation dtype."""
        ...

    def rotate_and_write(self, qkv_MHD: Tensor, rope: RopeRows, plan: PlanT, layer: int) -> Tensor:
        """Rotates queries and keys and writes keys and values into the arena.

        Args:
            qkv_MHD: [M, H + 2G, D]: query heads, key heads, value heads. May be overwritten.

        Returns:
            The rotated queries, [M, H, D].
        """
        ...

    def attention(self, q_MHD: Tensor, plan: PlanT, layer: int) -> Tensor:
        """Causal attention of each row over its own sequence's KV in the arena; [M, H * D]."""
        ...

    def logits(self, x_SK: Tensor, head_VK: Tensor) -> Tensor:
        """x · headᵀ in float32, [S, V]; the likeliest tokens' logits are not rounded to the activation dtype."""
        ...

    def swiglu(self, gate_up_M2I: Tensor) -> Tensor:
        """silu(gate) * up, [M, I]; the first I columns are the gate."""
        ...
