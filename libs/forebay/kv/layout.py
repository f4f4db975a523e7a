"""Shape of the KV in one block, and its size in memory. Does not know where blocks lie."""

from dataclasses import dataclass, fields, replace
from enum import Enum


class KvDtype(Enum):
    """Number format of KV.

    FLOAT16 and FLOAT8_E4M3 (OCP e4m3fn, which has a NaN but no infinity) have no scales; writers cut finite numbers
    beyond their range to the largest one, +-65,504 and +-448. INT8 is symmetric: an integer of -127 .. 127 times the
    float32 scale of its token's head, which is known as soon as that one token is written. In no format does a NaN or
    an infinity become a finite number: `forebay.kv.conversion` says what it becomes.
    """

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT8_E4M3 = "float8_e4m3"
    INT8 = "int8"

    @property
    def size_bytes(self) -> int:
        """Bytes of one number."""
        return _SIZE_BYTES[self]


_SIZE_BYTES = {
    KvDtype.FLOAT32: 4,
    KvDtype.BFLOAT16: 2,
    KvDtype.FLOAT16: 2,
    KvDtype.FLOAT8_E4M3: 1,
    KvDtype.INT8: 1,
}

SCALE_BYTES = 4
"""Bytes of one scale."""


class AxisOrder(Enum):
    """Order of axes inside one block."""

    # [layer, key|value, kv_head, token, head_dim]
    LAYER_KV_HEAD_TOKEN = "layer_kv_head_token"  # noqa: S105  # an axis, not a secret
    # [layer, key|value, token, kv_head, head_dim]
    LAYER_KV_TOKEN_HEAD = "layer_kv_token_head"  # noqa: S105
    # [layer, key|value, kv_head], then keys [head_dim / 2, token, 2], values [token / 2, head_dim, 2]: the native CPU
    # kernels read pairs
    LAYER_KV_HEAD_PAIRED = "layer_kv_head_paired"


@dataclass(frozen=True, slots=True)
class KvLayout:
    """Shape of one block. Two workers can share blocks only when their layouts are equal.

    Blocks of INT8 end with their scales, float32, from `scale_offset_bytes` on: [layer, key|value, kv_head, token]
    whatever the order of the numbers.

    ranks: workers of tensor parallelism write their heads apart: a block is then as many parts, one after the other, as
    there are ranks, each laid out as a block of its rank's heads alone (`parts`). All ranks know it by one id.
    """

    dtype: KvDtype
    layers: int
    kv_heads: int
    head_dim: int
    block_tokens: int = 32
    order: AxisOrder = AxisOrder.LAYER_KV_HEAD_TOKEN
    first_kv_head: int = 0
    total_kv_heads: int | None = None  # None: kv_heads, no tensor parallelism
    ranks: int = 1  # 1 .. kv_heads

    @property
    def block_bytes(self) -> int:
        """Bytes of one block, all layers, scales and parts included."""
        if self.ranks > 1:
            return sum(part.block_bytes for part in self.parts)
        if self.scale_offset_bytes is None:
            return self._row_count * self.head_dim * self.dtype.size_bytes
        return self.scale_offset_bytes + self._row_count * SCALE_BYTES

    @property
    def scale_offset_bytes(self) -> int | None:
        """Where in a block, or part, its scales begin, a multiple of their size; None: the dtype has none."""
        assert self.ranks == 1, "each part has its own"
        if self.dtype is not KvDtype.INT8:
            return None
        return -(-self._row_count * self.head_dim // SCALE_BYTES) * SCALE_BYTES

    @property
    def parts(self) -> "tuple[KvLayout, ...]":
        """What each rank writes, one after the other in the block: heads as even as they go, the first ranks more."""
        if self.ranks == 1:
            return (self,)
        each, more = divmod(self.kv_heads, self.ranks)
        parts, head = [], self.first_kv_head
        for rank in range(self.ranks):
            count = each + (rank < more)
            parts.append(replace(self, kv_heads=count, first_kv_head=head, total_kv_heads=self.model_kv_heads, ranks=1))
            head += count
        return tuple(parts)

    @property
    def part_offsets_bytes(self) -> tuple[int, ...]:
        """Where in a block each part begins: a multiple of its numbers' and scales' size."""
        sizes = [part.block_bytes for part in self.parts]
        return tuple(sum(sizes[:rank]) for rank in range(self.ranks))

    @property
    def model_kv_heads(self) -> int:
        """KV heads of the whole model, of which this layout has some."""
        return self.kv_heads if self.total_kv_heads is None else self.total_kv_heads

    @property
    def head_range(self) -> range:
        """The model's heads that lie in a block."""
        return range(self.first_kv_head, self.first_kv_head + self.kv_heads)

    @property
    def _row_count(self) -> int:
        """Runs of head_dim numbers in a block."""
        return self.layers * 2 * self.kv_heads * self.block_tokens

    def differences(self, theirs: "KvLayout") -> str:
        """What of this layout differs from another, for a person: "dtype float32, not bfloat16"."""
        pairs = [(field.name, getattr(self, field.name), getattr(theirs, field.name)) for field in fields(self)]
        return "; ".join(f"{name} {_text(ours)}, not {_text(other)}" for name, ours, other in pairs if ours != other)


def _text(value: object) -> object:
    return value.value if isinstance(value, Enum) else value
