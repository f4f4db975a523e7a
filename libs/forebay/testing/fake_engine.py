"""An engine without a model: the next token follows from the tokens so far, and KV is the token ids themselves.

It reads back from the arena what a sequence's block table says was written, so that a wrong table, a block given to two
writers or a prefix that is not what its hash says fails the sequence.
"""

import struct
import threading
from collections import Counter
from typing import Final

from forebay.engine.step_cost import ModelCost, Operations
from forebay.engine.types import Sampled, Sequence, Slice, TokenLogprobs
from forebay.errors import NumericFailureError
from forebay.kernels.peaks import Arithmetic
from forebay.kv.layout import KvDtype, KvLayout
from forebay.worker.arena_map import map_segment
from forebay.worker.attachment import Attachment
from forebay.worker.core_division import StepWork

VOCABULARY_SIZE: Final = 1000
POISON: Final = 666
"""A sequence with this token fails."""
LAYOUT: Final = KvLayout(dtype=KvDtype.FLOAT32, layers=1, kv_heads=1, head_dim=2, block_tokens=4)
MODEL_COST: Final = ModelCost(
    row_operations=Operations(200, {Arithmetic.INT8: 400}),
    head_operations=Operations(50, {Arithmetic.INT8: 100}),
    attention_operations=Operations(8, {Arithmetic.F32: 8}),
    layer_bytes=100,
    head_bytes=25,
    kv_token_bytes=16,
)


def next_token(token_ids: list[int]) -> int:
    """What this engine says after these tokens; never the poison, and at most 599."""
    return (sum(token_ids) * 7 + token_ids[-1] * 13 + len(token_ids)) % 600


def continuation(prompt: list[int], token_count: int) -> list[int]:
    """What a sequence of this prompt generates."""
    token_ids = list(prompt)
    for _ in range(token_count):
        token_ids.append(next_token(token_ids))
    return token_ids[len(prompt) :]


class FakeEngine:
    """Over the DEVICE segment of an attachment. `gate` holds steps back while it is cleared."""

    def __init__(self, attachment: Attachment) -> None:
        self._memory = map_segment(attachment.segments[0], LAYOUT.block_bytes)
        self._stride_bytes = attachment.segments[0].block_stride_bytes
        self.gate = threading.Event()
        self.gate.set()
        self.step_count = 0
        self.computed_tokens: Counter[str] = Counter()  # by sequence id
        self.breaks = False
        self.threads = 0
        self.model_cost = MODEL_COST

    def use_threads(self, threads: int) -> None:
        """As Engine.use_threads."""
        self.threads = threads

    def step(self, slices: list[Slice]) -> list[Sampled]:
        """As Engine.step."""
        self.gate.wait()
        self.step_count += 1
        if self.breaks:
            raise RuntimeError("broken on purpose")
        sampled = []
        for part in slices:
            self.computed_tokens[part.sequence.sequence_id] += part.token_count
            error = self._compute(part)
            if error is not None:
                sampled.append(Sampled(part.sequence.sequence_id, None, error=error))
            elif part.sequence.computed_tokens + part.token_count == part.sequence.token_count:
                token_id = next_token(_tokens(part.sequence))
                logprobs = None if part.sequence.sampling.logprobs is None else TokenLogprobs(-0.5, ((token_id, -0.5),))
                sampled.append(Sampled(part.sequence.sequence_id, token_id, logprobs))
        return sampled

    def _compute(self, part: Slice) -> NumericFailureError | None:
        sequence, token_ids = part.sequence, _tokens(part.sequence)
        end = sequence.computed_tokens + part.token_count
        if POISON in token_ids[:end]:
            return NumericFailureError("poisoned")
        for position in range(end):
            block, inside = divmod(position, LAYOUT.block_tokens)
            offset = sequence.block_table[block] * self._stride_bytes + inside * 4
            if position >= sequence.computed_tokens:
                struct.pack_into("<I", self._memory, offset, token_ids[position])
            elif struct.unpack_from("<I", self._memory, offset)[0] != token_ids[position]:
                return NumericFailureError(f"position {position} holds another token's KV")
        return None


def _tokens(sequence: Sequence) -> list[int]:
    return sequence.prompt_token_ids + sequence.output_token_ids


class FixedCores:
    """As forebay.worker.engine_thread.Cores, on a host where others compute only if told so. Broken, it raises."""

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self.is_busy = False
        self.is_broken = False
        self.works: list[StepWork] = []
        self.others_step_slo_s: float | None = None

    def enter(self, work: StepWork) -> int:
        if self.is_broken:
            raise RuntimeError("broken on purpose")
        self.is_busy = True
        self.works.append(work)
        return self.count

    def step_slo_of_others_s(self) -> float | None:
        return self.others_step_slo_s

    def leave(self) -> None:
        self.is_busy = False
