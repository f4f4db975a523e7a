"""Shape of the KV in one block, and its size in memory. Does not know where blocks lie."""

from dataclasses import dataclass, fields
from enum import Enum


class KvDtype(Enum):
    """Number format of KV."""

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
    """Shape of one block. Two workers can share blocks only when their layouts are equal."""

    dtype: KvDtype
    layers: int
    kv_heads: int
    head_dim: int
    block_tokens: int = 32
    order: AxisOrder = AxisOrder.LAYER_KV_HEAD_TOKEN
    first_kv_head: int = 0
    total_kv_heads: int | None = None  # None: kv_heads, no tensor parallelism

    @property
    def block_bytes(self) -> int:
        """Bytes of one block, all layers."""
        return self.layers * 2 * self.kv_heads * self.block_tokens * self.head_dim * self.dtype.size_bytes

    def differences(self, theirs: "KvLayout") -> str:
        """What of this layout differs from another, for a person: "dtype float32, not bfloat16"."""
        pairs = [(field.name, getattr(self, field.name), getattr(theirs, field.name)) for field in fields(self)]
        return "; ".join(f"{name} {_text(ours)}, not {_text(other)}" for name, ours, other in pairs if ours != other)


def _text(value: object) -> object:
    return value.value if isinstance(value, Enum) else value
