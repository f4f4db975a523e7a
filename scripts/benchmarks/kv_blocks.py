"""The KV blocks that benchmarks measure with: those of the default model."""

from pathlib import Path
from typing import Final

from forebay.chips.chip_class import DECODE_DEFAULT, chip_class_named
from forebay.chips.kv_layout import layout_for
from forebay.kv.layout import KvDtype, KvLayout
from forebay.models.model_file import open_model

LAYOUT: Final = KvLayout(KvDtype.BFLOAT16, layers=30, kv_heads=3, head_dim=64)
"""Of the default model's size, 737,280 bytes of 32 tokens; for benchmarks that need no model file."""


def served_layout(model: Path) -> KvLayout:
    """The layout in which a mesh keeps a model's KV unless told otherwise."""
    return layout_for(open_model(model).config, chip_class_named(DECODE_DEFAULT))
