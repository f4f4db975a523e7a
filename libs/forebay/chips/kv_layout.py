"""Which KV layout the workers of a chip class use. Imports no tensor library, so that the KV-cache service can ask."""

from collections.abc import Mapping
from types import MappingProxyType

from forebay.chips.chip_class import ChipClass, KernelSet
from forebay.errors import StartError
from forebay.kv.layout import AxisOrder, KvLayout
from forebay.models.config import DecoderConfig

_ORDERS: Mapping[KernelSet, AxisOrder] = MappingProxyType(
    {
        KernelSet.NATIVE: AxisOrder.LAYER_KV_HEAD_PAIRED,
        KernelSet.TORCH: AxisOrder.LAYER_KV_HEAD_TOKEN,
    }
)


def layout_for(config: DecoderConfig, chip_class: ChipClass) -> KvLayout:
    """Layout of the KV that an engine of this chip class reads and writes.

    Raises:
        StartError: the model has fewer KV heads than the chip class has ranks.
    """
    if chip_class.ranks > config.kv_heads:
        raise StartError(
            f"chip class {chip_class.name} cuts a model's KV heads among {chip_class.ranks} ranks; this one has"
            f" {config.kv_heads}",
            field="chip_class",
        )
    return KvLayout(
        dtype=chip_class.kv_dtype,
        layers=config.layers,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        block_tokens=chip_class.block_tokens,
        order=_ORDERS[chip_class.kernels],
        ranks=chip_class.ranks,
    )
