"""The compiled library seen from Python: its structs, its functions, and which build to load.

Mirrors `native/c_api.h` field by field. Calls release the interpreter's lock.
"""

import ctypes
import logging
import os
from pathlib import Path

from forebay.kernels.cpu.build import CompileError, NativeUnavailableError, Progress, built_library, plan_build
from forebay.kernels.cpu.instruction_set import InstructionSet, supported_sets
from forebay.models.cache_folder import cache_dir

ABI_VERSION = 3
PHASES = ("embed", "norm", "qkv", "rope", "attention", "join", "output", "gate_up", "down", "head", "scan")
"""What the seconds of forebay_engine_phase_seconds are of."""

_log = logging.getLogger(__name__)
_int32, _pointer = ctypes.c_int32, ctypes.c_void_p


class LinearStruct(ctypes.Structure):
    """One matrix in tiles."""

    _fields_ = [  # ctypes reads this list
        ("tiles", _pointer),
        ("bias", _pointer),
        ("format", _int32),
        ("outputs", _int32),
        ("inputs", _int32),
        ("has_wide_inputs", _int32),
    ]


class LayerStruct(ctypes.Structure):
    """One decoder layer."""

    _fields_ = [
        *((name, LinearStruct) for name in ("query", "key", "value", "output", "gate", "up", "down")),
        *((name, _pointer) for name in ("attention_norm", "query_norm", "key_norm", "feed_forward_norm")),
    ]


class ModelStruct(ctypes.Structure):
    """One decoder."""

    _fields_ = [
        *((name, _int32) for name in ("hidden", "intermediate", "query_heads", "kv_heads", "head_dim")),
        *((name, _int32) for name in ("vocabulary", "layer_count", "block_tokens", "is_kv_float32")),
        ("norm_epsilon", ctypes.c_float),
        ("inverse_frequencies", _pointer),
        ("final_norm", _pointer),
        ("embedding", LinearStruct),
        ("head", LinearStruct),
        ("layers", ctypes.POINTER(LayerStruct)),
    ]


class StepStruct(ctypes.Structure):
    """One step."""

    _fields_ = [
        *((name, _int32) for name in ("row_count", "slice_count", "sample_count", "thread_count")),
        *((name, _pointer) for name in ("token_ids", "slice_rows", "slice_positions", "block_tables")),
        *((name, _pointer) for name in ("table_starts", "sample_rows", "arena")),
        *((name, ctypes.c_int64) for name in ("block_stride_bytes", "block_count", "logits_stride")),
        *((name, _pointer) for name in ("logits", "best_tokens", "is_finite")),
    ]


class NativeLibrary:
    """One loaded build. name: of its file, which differs whenever sources, compiler or flags do."""

    def __init__(self, path: Path) -> None:
        """Loads the library.

        Raises:
            NativeUnavailableError: it cannot be loaded or is of another version.
        """
        self.name = path.name
        try:
            self.functions = ctypes.CDLL(str(path))
        except OSError as error:
            raise NativeUnavailableError(f"{path}: cannot be loaded ({error}); delete it") from None
        if self.functions.forebay_abi_version() != ABI_VERSION:
            raise NativeUnavailableError(f"{path}: of another version; delete it")
        self.functions.forebay_instruction_set.restype = ctypes.c_char_p
        self.functions.forebay_engine_create.restype = ctypes.c_void_p
        self.functions.forebay_engine_workspace_bytes.restype = ctypes.c_int64

    @property
    def instruction_set(self) -> InstructionSet:
        """What the build uses."""
        return InstructionSet(self.functions.forebay_instruction_set().decode())


_loaded: dict[InstructionSet | None, NativeLibrary] = {}
"""By the set that was named; None: what was taken where none was."""


def load_library(
    instruction_set: InstructionSet | None = None, progress: Progress = lambda line: None
) -> NativeLibrary:
    """The library for this machine, compiled first if need be, once per process.

    With FOREBAY_NATIVE_SANITIZED=1 it is built with the address and undefined-behaviour sanitizers, for tests; their
    runtimes must be loaded beforehand.

    Args:
        instruction_set: None: what FOREBAY_INSTRUCTION_SET names, else the widest that this machine has and its
            compiler knows.

    Raises:
        NativeUnavailableError: there is no compiler, it fails, or the machine cannot run such a build.
    """
    named = instruction_set or _named_set()
    supported = supported_sets()
    if named is not None and named not in supported:
        names = ", ".join(one.value for one in supported)
        raise NativeUnavailableError(f"this CPU cannot run {named.value} kernels; it can run: {names}")
    if named not in _loaded:
        _loaded[named] = _first_that_compiles(supported if named is None else [named], progress)
    return _loaded[named]


def _first_that_compiles(candidates: list[InstructionSet], progress: Progress) -> NativeLibrary:
    is_sanitized = os.environ.get("FOREBAY_NATIVE_SANITIZED") == "1"
    refusals: list[str] = []
    for candidate in candidates:
        try:
            path = built_library(plan_build(candidate, is_sanitized), cache_dir() / "native", progress)
        except CompileError as error:
            refusals.append(error.message)
        else:
            if refusals:
                _log.warning("native kernels for %s are taken: %s", candidate.value, "; ".join(refusals))
            return NativeLibrary(path)
    raise CompileError("; ".join(refusals))


def _named_set() -> InstructionSet | None:
    name = os.environ.get("FOREBAY_INSTRUCTION_SET")
    if not name:
        return None
    try:
        return InstructionSet(name)
    except ValueError:
        names = ", ".join(one.value for one in InstructionSet)
        raise NativeUnavailableError(f"FOREBAY_INSTRUCTION_SET is {name!r}; choose one of: {names}") from None
