"""What it takes to turn blocks of one KV layout into blocks of another, decided before any byte is touched. Pure.

Knows which layouts can be converted, what is read from where, and how far the numbers may move. Does not convert:
`forebay.kernels.converter` does.

Numbers go through float32, which holds those of every dtype exactly, and are rounded once, to nearest even. So a
conversion is exact, bit for bit, when the target's dtype holds all numbers of the source's; axis order, block size,
head split and ranks never change a number. A NaN or an infinity never becomes a finite number:

    FLOAT32, BFLOAT16, FLOAT16   NaN stays NaN (its payload is lost), an infinity stays one
    FLOAT8_E4M3                  both become NaN
    INT8                         either makes its token's whole head NaN: the scale is NaN
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from forebay.errors import LayoutMismatchError
from forebay.kv.layout import AxisOrder, KvDtype, KvLayout


@dataclass(frozen=True, slots=True)
class ErrorBound:
    """How far a converted number may lie from the original, both finite:

        relative * |original| + of_row * (largest magnitude of the token's head) + absolute

    largest: originals beyond this magnitude count as cut to it; None: there are none.
    """

    relative: float = 0.0
    of_row: float = 0.0
    absolute: float = 0.0
    largest: float | None = None


_ROUNDED: Final[Mapping[KvDtype, ErrorBound]] = MappingProxyType(
    {
        # Half a unit in the last of so many significant bits, and half the smallest number.
        KvDtype.BFLOAT16: ErrorBound(relative=2**-8, absolute=2**-134, largest=(2 - 2**-7) * 2.0**127),
        KvDtype.FLOAT16: ErrorBound(relative=2**-11, absolute=2**-25, largest=65504.0),
        KvDtype.FLOAT8_E4M3: ErrorBound(relative=2**-4, absolute=2**-10, largest=448.0),
        # Half a step of amax / 127, and a few roundings of float32. Rows below 2^-119 become zeros, so that neither a
        # scale nor its inverse leaves float32's normal range.
        KvDtype.INT8: ErrorBound(of_row=1 / 254 + 2**-21, absolute=2**-119),
    }
)
"""Error of rounding any float32 to a dtype."""

_HOLDS: Final[Mapping[KvDtype, frozenset[KvDtype]]] = MappingProxyType(
    {
        KvDtype.FLOAT32: frozenset(KvDtype),
        KvDtype.BFLOAT16: frozenset({KvDtype.BFLOAT16, KvDtype.FLOAT8_E4M3}),
        KvDtype.FLOAT16: frozenset({KvDtype.FLOAT16, KvDtype.FLOAT8_E4M3}),
        KvDtype.FLOAT8_E4M3: frozenset({KvDtype.FLOAT8_E4M3}),
        KvDtype.INT8: frozenset({KvDtype.INT8}),
    }
)
"""The dtypes whose numbers a dtype holds exactly. A number of INT8 is the float32 nearest to integer times scale."""


@dataclass(frozen=True, slots=True)
class HeadRead:
    """Neighbouring heads that the target takes from one source. Heads are counted within their block."""

    source: int  # which of the plan's sources
    first_source_head: int
    first_target_head: int
    head_count: int


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """A conversion that can be done. sources: the shards that hold one run of tokens, alike but for their heads.

    A run begins at a token where blocks of both sizes begin, and may end anywhere: its last blocks are then partly
    filled, and the rest of the target's last block is zeros.
    """

    sources: tuple[KvLayout, ...]
    target: KvLayout
    head_reads: tuple[HeadRead, ...]

    @property
    def is_in_parts(self) -> bool:
        """Whether a block of either side is more than one part; head_reads then count in the whole block."""
        return any(layout.ranks > 1 for layout in (*self.sources, self.target))

    @property
    def error_bound(self) -> ErrorBound | None:
        """None: the conversion is exact."""
        is_held = self.sources[0].dtype in _HOLDS[self.target.dtype]
        return None if is_held else _ROUNDED[self.target.dtype]

    @property
    def run_tokens(self) -> int:
        """Tokens after which blocks of both sizes begin again: the least that can be converted by itself."""
        return max(self.sources[0].block_tokens, self.target.block_tokens)

    def source_block_count(self, token_count: int) -> int:
        """Blocks of each source that hold a run of so many tokens."""
        return -(-token_count // self.sources[0].block_tokens)

    def target_block_count(self, token_count: int) -> int:
        """Blocks of the target that a run of so many tokens becomes."""
        return -(-token_count // self.target.block_tokens)


def plan_conversion(sources: Sequence[KvLayout], target: KvLayout) -> ConversionPlan:
    """How blocks of the target's layout are made of the sources' blocks.

    Args:
        sources: layouts of the shards at hand. Where several have a head, the first of them is read.

    Raises:
        LayoutMismatchError: it cannot be done; `field` and text name what stands in the way.
    """
    if not sources:
        raise LayoutMismatchError("a conversion needs at least one source layout", field="sources")
    for layout in (*sources, target):
        _check_shape(layout)
    for source in sources[1:]:
        _check_equal(sources[0], source, ("dtype", "order", "block_tokens"))
    for source in sources:
        _check_equal(source, target, ("layers", "head_dim", "model_kv_heads"))
    _check_block_sizes(sources[0].block_tokens, target.block_tokens)
    return ConversionPlan(tuple(sources), target, _head_reads(sources, target))


def _check_shape(layout: KvLayout) -> None:
    for name in ("layers", "kv_heads", "head_dim", "block_tokens"):
        if getattr(layout, name) < 1:
            raise _refusal(name, f"{name} is {getattr(layout, name)}; it must be at least 1")
    if not 0 <= layout.first_kv_head <= layout.model_kv_heads - layout.kv_heads:
        raise _refusal(
            "first_kv_head",
            f"first_kv_head {layout.first_kv_head} with kv_heads {layout.kv_heads} leaves the model's"
            f" {layout.model_kv_heads} heads",
        )
    if not 1 <= layout.ranks <= layout.kv_heads:
        raise _refusal(
            "ranks", f"ranks is {layout.ranks}; {layout.kv_heads} KV heads go to 1 .. {layout.kv_heads} ranks"
        )
    if layout.order is AxisOrder.LAYER_KV_HEAD_PAIRED:
        for name in ("head_dim", "block_tokens"):
            if getattr(layout, name) % 2:
                raise _refusal(name, f"{name} {getattr(layout, name)} is odd; order {layout.order.value} has pairs")


def _check_equal(source: KvLayout, target: KvLayout, names: Sequence[str]) -> None:
    for name in names:
        ours, theirs = getattr(source, name), getattr(target, name)
        if ours != theirs:
            field = "total_kv_heads" if name == "model_kv_heads" else name
            raise _refusal(field, f"{field} {_text(ours)} and {_text(theirs)} differ and cannot be converted")


def _check_block_sizes(source_tokens: int, target_tokens: int) -> None:
    if max(source_tokens, target_tokens) % min(source_tokens, target_tokens):
        raise _refusal(
            "block_tokens", f"block_tokens {source_tokens} and {target_tokens}: neither divides the other without rest"
        )


def _head_reads(sources: Sequence[KvLayout], target: KvLayout) -> tuple[HeadRead, ...]:
    reads: list[HeadRead] = []
    head = target.first_kv_head
    while head < target.head_range.stop:
        number = next((number for number, source in enumerate(sources) if head in source.head_range), None)
        if number is None:
            raise _refusal("first_kv_head", f"first_kv_head and kv_heads: no source has the model's KV head {head}")
        held = sources[number].head_range
        count = min(held.stop, target.head_range.stop) - head
        reads.append(HeadRead(number, head - held.start, head - target.first_kv_head, count))
        head += count
    return tuple(reads)


def _refusal(name: str, text: str) -> LayoutMismatchError:
    return LayoutMismatchError(f"KV layout: {text}", field=f"layout.{name}")


def _text(value: object) -> object:
    return value.value if isinstance(value, (KvDtype, AxisOrder)) else value
