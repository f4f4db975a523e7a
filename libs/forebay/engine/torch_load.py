"""From a model on disk to an engine on torch. Imports torch."""

from collections.abc import Callable

from forebay.chips import ChipClass
from forebay.engine.arena import KvArena
from forebay.engine.kv_memory import KvMemory
from forebay.engine.torch_engine import TorchEngine
from forebay.engine.weights import load_weights
from forebay.models.cache_folder import cache_dir
from forebay.models.model_file import ModelFile


def load_torch_engine(
    model: ModelFile,
    chip_class: ChipClass,
    memory: KvMemory,
    threads: int,
    progress: Callable[[str], None] = lambda line: None,
) -> TorchEngine:
    """As `forebay.engine.load.load_engine`, for a chip class with torch kernels."""
    arena = KvArena(memory.buffer, memory.layout, memory.block_count, memory.block_stride_bytes)
    tenths = _Tenths(f"packing the weights of {model.name}, only this once", progress)
    weights = load_weights(model, chip_class.weight_dtype, cache_dir() / "weights", tenths)
    return TorchEngine(weights, model.config, arena, threads)


class _Tenths:
    """Says how far something is: one line for each tenth."""

    def __init__(self, what: str, say: Callable[[str], None]) -> None:
        self._what = what
        self._say = say
        self._told_tenths = -1

    def __call__(self, done_count: int, total_count: int) -> None:
        tenths = 10 * done_count // total_count
        if tenths > self._told_tenths:
            self._told_tenths = tenths
            self._say(f"{self._what}: {10 * tenths} %")
