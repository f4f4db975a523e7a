"""From a model on disk and a chip class to an engine: used by workers and by benchmarks alike."""

from pathlib import Path

from forebay.chips import ChipClass
from forebay.engine.arena import KvArena
from forebay.engine.torch_engine import TorchEngine
from forebay.engine.weights import Progress, load_weights
from forebay.errors import StartError
from forebay.kv.layout import KvDtype, KvLayout
from forebay.models.cache_folder import cache_dir
from forebay.models.config import DecoderConfig
from forebay.models.model_file import ModelFile, open_model


def layout_for(config: DecoderConfig, chip_class: ChipClass, block_tokens: int = 32) -> KvLayout:
    """Layout of the KV that an engine of this chip class reads and writes."""
    return KvLayout(
        dtype=KvDtype(chip_class.kv_dtype.value),
        layers=config.layers,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        block_tokens=block_tokens,
    )


def load_engine(
    model: Path | ModelFile,
    chip_class: ChipClass,
    arena: KvArena,
    progress: Progress = lambda done_count, total_count: None,
) -> TorchEngine:
    """An engine for the model (or the path of one) over an arena of `layout_for`'s layout.

    Args:
        progress: told how far packing the weights is, when they have to be packed.

    Raises:
        StartError: the model cannot be served by this chip class, or is damaged.
        LayoutMismatchError: the arena has another layout.
    """
    opened = open_model(model) if isinstance(model, Path) else model
    _check_supported(opened.config, chip_class)
    weights = load_weights(opened, chip_class.weight_dtype, cache_dir() / "weights", progress)
    return TorchEngine(weights, opened.config, arena, chip_class.threads)


def _check_supported(config: DecoderConfig, chip_class: ChipClass) -> None:
    if chip_class.device != "cpu":
        raise StartError(f"chip class {chip_class.name} needs device {chip_class.device}; this engine has only cpu")
    if chip_class.kv_dtype is not chip_class.weight_dtype:
        raise StartError(f"chip class {chip_class.name}: the torch engine needs equal weight and KV dtypes")
    if config.sliding_window is not None and config.sliding_window < config.context_tokens:
        raise StartError(
            f"the model attends to a sliding window of {config.sliding_window} tokens, "
            f"shorter than its context of {config.context_tokens}; that is not supported"
        )
