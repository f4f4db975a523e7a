"""From a model on disk and a chip class to an engine: used by workers and by benchmarks alike.

Imports no tensor library before a chip class asks for it: a native worker starts in half the time without torch.
"""

from collections.abc import Callable

from forebay.chips import ChipClass, KernelSet
from forebay.chips.chip_class import WITHOUT_COMPILER
from forebay.engine.kv_memory import KvMemory
from forebay.engine.native_arena import NativeArena
from forebay.engine.native_load import load_native_engine
from forebay.engine.native_precision import NativePrecision
from forebay.engine.openmp import spin_briefly
from forebay.engine.types import Engine
from forebay.errors import StartError
from forebay.host.gpu_memory import OpenedGpuMemory
from forebay.kernels.cpu.build import NativeUnavailableError
from forebay.kernels.cpu.packed_model import WeightPolicy
from forebay.models.model_file import ModelFile

Progress = Callable[[str], None]
"""Told one line before each slow thing, and how far it is."""


def load_engine(
    model: ModelFile,
    chip_class: ChipClass,
    memory: KvMemory,
    threads: int,
    progress: Progress = lambda line: None,
) -> Engine:
    """An engine for the model over memory of `layout_for`'s layout.

    Args:
        threads: most cores that a step may ever use.
        progress: told what is compiled or packed, which happens once per machine and model.

    Raises:
        StartError: the model cannot be served by this chip class, or is damaged.
        LayoutMismatchError: the memory has another layout.
    """
    if chip_class.device != "cpu":
        raise StartError(f"chip class {chip_class.name} needs device {chip_class.device}; this engine has only cpu")
    if chip_class.kernels is KernelSet.NATIVE:
        assert not isinstance(memory.buffer, OpenedGpuMemory), "chip classes with native kernels compute on the CPU"
        arena = NativeArena(memory.buffer, memory.layout, memory.block_count, memory.block_stride_bytes)
        precision = NativePrecision(WeightPolicy(chip_class.weight_dtype.value), chip_class.activation_bits)
        try:
            return load_native_engine(model, arena, precision, threads, progress)
        except NativeUnavailableError as error:
            raise StartError(
                f"chip class {chip_class.name}: {error.message}; or start all services of this node with"
                f" --chip-class {WITHOUT_COMPILER}, which computes with torch"
            ) from error
    spin_briefly()
    # torch takes a second and 200 MB, and must be loaded after the line above.
    from forebay.engine.torch_load import load_torch_engine  # noqa: PLC0415

    return load_torch_engine(model, chip_class, memory, threads, progress)
