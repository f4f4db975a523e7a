"""From a model on disk and a chip class to an engine: used by workers and by benchmarks alike."""

from forebay.chips import ChipClass
from forebay.engine.arena import KvArena
from forebay.engine.torch_engine import TorchEngine
from forebay.engine.weights import Progress, load_weights
from forebay.errors import StartError
from forebay.models.cache_folder import cache_dir
from forebay.models.model_file import ModelFile


def load_engine(
    model: ModelFile,
    chip_class: ChipClass,
    arena: KvArena,
    progress: Progress = lambda done_count, total_count: None,
) -> TorchEngine:
    """An engine for the model over an arena of `layout_for`'s layout.

    Args:
        progress: told how far packing the weights is, when they have to be packed.

    Raises:
        StartError: the model cannot be served by this chip class, or is damaged.
        LayoutMismatchError: the arena has another layout.
    """
    _check_supported(chip_class)
    weights = load_weights(model, chip_class.weight_dtype, cache_dir() / "weights", progress)
    return TorchEngine(weights, model.config, arena, chip_class.threads)


def _check_supported(chip_class: ChipClass) -> None:
    if chip_class.device != "cpu":
        raise StartError(f"chip class {chip_class.name} needs device {chip_class.device}; this engine has only cpu")
    if chip_class.kv_dtype is not chip_class.weight_dtype:
        raise StartError(f"chip class {chip_class.name}: the torch engine needs equal weight and KV dtypes")
