"""From a model on disk to a native engine: compiles and packs what is not in the cache yet."""

from collections.abc import Callable

from forebay.engine.native_arena import NativeArena, check_layout
from forebay.engine.native_engine import NativeEngine
from forebay.engine.native_precision import NativePrecision
from forebay.errors import ForebayError, StartError
from forebay.kernels.cpu.instruction_set import InstructionSet
from forebay.kernels.cpu.library import load_library
from forebay.kernels.cpu.packed_model import load_packed_model
from forebay.kv.layout import AxisOrder, KvDtype, KvLayout
from forebay.models.cache_folder import cache_dir
from forebay.models.config import DecoderConfig
from forebay.models.model_file import ModelFile

Progress = Callable[[str], None]
"""Told one line before each slow thing."""

_DEFAULT = NativePrecision()


def native_layout(config: DecoderConfig, dtype: KvDtype = KvDtype.BFLOAT16, block_tokens: int = 32) -> KvLayout:
    """Layout of the KV that a native engine reads and writes."""
    return KvLayout(
        dtype=dtype,
        layers=config.layers,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        block_tokens=block_tokens,
        order=AxisOrder.LAYER_KV_HEAD_PAIRED,
    )


def native_refusal(model: ModelFile, progress: Progress = lambda line: None) -> str | None:
    """Why this machine's native kernels cannot serve the model; None when they can. Compiles them first if need be."""
    try:
        check_layout(native_layout(model.config))
        load_library(progress=progress)
    except ForebayError as error:
        return error.message
    return None


def load_native_engine(
    model: ModelFile,
    arena: NativeArena,
    precision: NativePrecision = _DEFAULT,
    threads: int = 1,
    progress: Progress = lambda line: None,
    instruction_set: InstructionSet | None = None,
) -> NativeEngine:
    """An engine for the model over an arena of `native_layout`'s layout.

    Args:
        instruction_set: None: the widest that this machine has.

    Raises:
        NativeUnavailableError: the kernels cannot be compiled or run here; the torch engine can.
        StartError: the model cannot be served, or is damaged.
        LayoutMismatchError: the arena has another layout.
    """
    config = model.config
    if config.sliding_window is not None and config.sliding_window < config.context_tokens:
        raise StartError(
            f"the model attends to a sliding window of {config.sliding_window} tokens, "
            f"shorter than its context of {config.context_tokens}; that is not supported"
        )
    library = load_library(instruction_set, progress=progress)
    packed = load_packed_model(model, precision.weights, cache_dir() / "weights", progress)
    return NativeEngine(library, packed, config, arena, threads, precision.activation_bits)
