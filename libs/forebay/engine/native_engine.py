"""The engine on the native CPU kernels: a whole step, prefill chunks and decode tokens mixed, is one call.

Knows how slices become the library's arrays and logits become tokens. Does not schedule, own KV memory, or see the
network; one thread calls it.
"""

import ctypes
from collections.abc import Sequence as Rows
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forebay.engine.draw import draw_of
from forebay.engine.native_arena import NativeArena
from forebay.engine.native_cost import native_model_cost
from forebay.engine.native_draws import NativeDraws
from forebay.engine.native_model import NativeModel
from forebay.engine.sampler import sampled
from forebay.engine.types import Sampled, Sequence, Slice
from forebay.errors import KvExhaustedError, LayoutMismatchError, StartError, TokenOutOfRangeError
from forebay.kernels.cpu.library import PHASES, NativeLibrary, StepStruct
from forebay.kernels.cpu.packed_file import PackedFile
from forebay.models.config import DecoderConfig

_LOGITS_MULTIPLE = 16

Int32s = NDArray[np.int32]


class NativeEngine:
    """`forebay.engine.types.Engine` on the CPU, in native code.

    A sequence's logits are the same bits in whatever steps and company it is computed and by however many threads.
    """

    def __init__(
        self,
        library: NativeLibrary,
        packed: PackedFile,
        config: DecoderConfig,
        arena: NativeArena,
        threads: int = 1,
        activation_bits: int = 16,
    ) -> None:
        """Args: threads: cores that a step may use, this thread's included; activation_bits: see NativePrecision.

        Raises:
            LayoutMismatchError: the arena's layout is not this model's.
            StartError: there is no memory or thread left.
        """
        layout = arena.layout
        found, needed = (
            (one.layers, one.kv_heads, one.head_dim) for one in (layout, config)
        )  # both name their shapes alike
        if found != needed:
            raise LayoutMismatchError(
                f"the arena has (layers, kv_heads, head_dim) {found}, the engine needs {needed}", field="layout"
            )
        self._functions = library.functions
        self._config = config
        self._arena = arena
        self._model = NativeModel(packed, config, layout, activation_bits)
        self._threads = threads
        self._weight_bytes = packed.size_bytes
        self.model_cost = native_model_cost(packed, config, layout, activation_bits)
        self._logits = np.empty((0, 0), np.float32)
        handle = self._functions.forebay_engine_create(ctypes.byref(self._model.struct), threads)
        if not handle:
            raise StartError(f"the native engine cannot start {threads} threads: memory or threads are exhausted")
        self._handle = ctypes.c_void_p(handle)

    def __del__(self) -> None:
        """Ends the engine's threads."""
        if hasattr(self, "_handle"):
            self._functions.forebay_engine_destroy(self._handle)

    def use_threads(self, threads: int) -> None:
        """Cores that steps may use from now on, at most those given at the start. Changes their speed only."""
        self._threads = threads

    def step(self, slices: list[Slice]) -> list[Sampled]:
        """As Engine.step; results are in the order of the slices that sample."""
        if not slices:
            return []
        logits, tokens, is_finite = self._compute(slices)
        sampling = [part.sequence for part in slices if _samples(part)]
        return [
            sampled(sequence, logits[row], int(tokens[row]) if is_finite[row] else None)
            for row, sequence in enumerate(sampling)
        ]

    def logits(self, slices: list[Slice]) -> NDArray[np.float32]:
        """Computes the slices; raw float32 logits [S, vocabulary] of those that sample, in their order.

        A view of the engine's own memory: the next step overwrites it.
        """
        return self._compute(slices)[0]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights, which every decode step reads once."""
        return self._weight_bytes

    @property
    def workspace_bytes(self) -> int:
        """Memory that steps have needed so far, besides logits."""
        return int(self._functions.forebay_engine_workspace_bytes(self._handle))

    def take_phase_seconds(self) -> dict[str, float]:
        """Seconds that each phase of the steps since the last call took; the first call only turns the clocks on."""
        seconds = (ctypes.c_double * len(PHASES))()
        self._functions.forebay_engine_phase_seconds(self._handle, seconds)
        return dict(zip(PHASES, seconds, strict=True))

    def _compute(self, slices: list[Slice]) -> tuple[NDArray[np.float32], Int32s, NDArray[np.uint8]]:
        """Raw logits [S, vocabulary], the token chosen from each row, and whether it is finite: else there is none."""
        token_ids = self._token_ids(slices)
        slice_rows = np.array([part.token_count for part in slices], np.int32)
        positions = np.array([part.sequence.computed_tokens for part in slices], np.int32)
        tables, table_starts = self._tables(slices)
        ends = np.cumsum(slice_rows, dtype=np.int32) - 1
        sample_rows = ends[[_samples(part) for part in slices]]
        sample_count = len(sample_rows)
        logits = self._logits_for(sample_count)
        draws = self._draws(slices)
        tokens, is_finite = np.empty(sample_count, np.int32), np.empty(sample_count, np.uint8)
        step = StepStruct(
            row_count=len(token_ids),
            slice_count=len(slices),
            sample_count=sample_count,
            thread_count=self._threads,
            arena=self._arena.address,
            block_stride_bytes=self._arena.block_stride_bytes,
            block_count=self._arena.block_count,
            logits_stride=logits.shape[1],
            draws=draws.address,
            **_addresses(
                token_ids=token_ids,
                slice_rows=slice_rows,
                slice_positions=positions,
                block_tables=tables,
                table_starts=table_starts,
                sample_rows=sample_rows,
                logits=logits,
                tokens=tokens,
                is_finite=is_finite,
            ),
        )
        if self._functions.forebay_engine_step(self._handle, ctypes.byref(step)):
            raise MemoryError(f"no memory for a step of {len(token_ids)} tokens")
        return logits[:sample_count, : self._config.vocabulary_size], tokens, is_finite

    def _token_ids(self, slices: list[Slice]) -> Int32s:
        token_ids = np.array(list(chain.from_iterable(_tokens_of(part) for part in slices)), np.int32)
        self._check_token_ids(token_ids)
        return token_ids

    def _check_token_ids(self, token_ids: Int32s) -> None:
        if token_ids.min() < 0 or token_ids.max() >= self._config.vocabulary_size:
            raise TokenOutOfRangeError(f"a token id is not below {self._config.vocabulary_size}")

    def _draws(self, slices: list[Slice]) -> NativeDraws:
        draws = [draw_of(part.sequence) for part in slices if _samples(part)]
        for draw in draws:
            # Of a prompt found in the cache, nothing else looks at these.
            if draw.penalties is not None:
                self._check_token_ids(draw.penalties.token_ids)
        return NativeDraws(draws)

    def _tables(self, slices: list[Slice]) -> tuple[Int32s, Int32s]:
        """Block tables one after the other, and where each starts."""
        block_tokens = self._arena.layout.block_tokens
        for part in slices:
            sequence = part.sequence
            if len(sequence.block_table) * block_tokens < sequence.computed_tokens + part.token_count:
                raise KvExhaustedError(f"sequence {sequence.sequence_id} has too few blocks for its step")
        tables = np.array(list(chain.from_iterable(part.sequence.block_table for part in slices)), np.int32)
        if tables.min() < 0 or tables.max() >= self._arena.block_count:
            raise LayoutMismatchError(f"a block id is not below {self._arena.block_count}")
        lengths = [len(part.sequence.block_table) for part in slices]
        return tables, np.cumsum([0, *lengths[:-1]], dtype=np.int32)

    def _logits_for(self, sample_count: int) -> NDArray[np.float32]:
        if len(self._logits) < sample_count:
            stride = -(-self._config.vocabulary_size // _LOGITS_MULTIPLE) * _LOGITS_MULTIPLE
            self._logits = np.empty((sample_count, stride), np.float32)
        return self._logits


def _addresses(**arrays: NDArray[Any]) -> dict[str, int]:
    return {name: array.ctypes.data for name, array in arrays.items()}


def _samples(part: Slice) -> bool:
    return part.sequence.computed_tokens + part.token_count == part.sequence.token_count


def _tokens_of(part: Slice) -> Rows[int]:
    sequence: Sequence = part.sequence
    prompt_tokens = len(sequence.prompt_token_ids)
    start, end = sequence.computed_tokens, sequence.computed_tokens + part.token_count
    if start >= prompt_tokens:
        return sequence.output_token_ids[start - prompt_tokens : end - prompt_tokens]
    token_ids = sequence.prompt_token_ids[start:end]
    return token_ids if end <= prompt_tokens else token_ids + sequence.output_token_ids[: end - prompt_tokens]
