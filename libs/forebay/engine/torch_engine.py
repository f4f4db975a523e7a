"""The engine on torch: mixed steps of prefill chunks and decode tokens over a paged arena.

Knows how slices become rows. Does not schedule, own KV memory, or see the network; one thread calls it.
"""

from itertools import chain

import torch
from torch import Tensor

from forebay.engine.arena import KvArena
from forebay.engine.decoder import Decoder, Rank
from forebay.engine.rank_weights import rank_layers
from forebay.engine.rope_table import RopeTable
from forebay.engine.sampler import sample
from forebay.engine.torch_cost import torch_model_cost
from forebay.engine.types import Sampled, Sequence, Slice
from forebay.engine.weights import DecoderWeights
from forebay.errors import LayoutMismatchError
from forebay.kernels.attention_plan import AttentionPlan
from forebay.kernels.paged_kv import PagedKv
from forebay.kernels.port import HeadShape, Span
from forebay.kernels.torch_reference import TorchKernels
from forebay.models.config import DecoderConfig


class TorchEngine:
    """`forebay.engine.types.Engine` on the CPU.

    A sequence's logits are the same bits in whatever steps and company it is computed and by however many threads.
    """

    def __init__(self, weights: DecoderWeights, config: DecoderConfig, arena: KvArena, threads: int = 1) -> None:
        """Args: threads: cores a step may use. torch's setting is the process's, so one engine per process.

        Raises:
            LayoutMismatchError: the arena's layout is not this model's.
        """
        _check_layout(config, arena)
        self._ranks = _ranks(weights, config, arena)
        self._decoder: Decoder[AttentionPlan] = Decoder(config, weights, self._ranks)
        self._rope = RopeTable(config)
        self._threads = threads
        self.model_cost = torch_model_cost(weights, config, arena.layout)

    def use_threads(self, threads: int) -> None:
        """Cores that steps may use from now on. Changes their speed, never their results."""
        self._threads = threads

    def step(self, slices: list[Slice]) -> list[Sampled]:
        """As Engine.step; results are in the order of the slices that sample."""
        if not slices:
            return []
        logits = self.logits(slices)
        sampling = [part.sequence for part in slices if _samples(part)]
        return sample(logits.numpy(), sampling)

    @torch.inference_mode()
    def logits(self, slices: list[Slice]) -> Tensor:
        """Computes the slices; raw float32 logits [S, vocabulary] of those that sample, in their order."""
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        # Single tokens first and shortest first: the kernels group neighbours of like length.
        ordered = sorted(slices, key=lambda part: (part.token_count, part.sequence.computed_tokens))
        hidden = self._hidden(ordered)
        end_rows: dict[str, int] = {}
        row_count = 0
        for part in ordered:
            row_count += part.token_count
            end_rows[part.sequence.sequence_id] = row_count - 1
        rows = [end_rows[part.sequence.sequence_id] for part in slices if _samples(part)]
        return self._decoder.logits(hidden.index_select(0, torch.tensor(rows, dtype=torch.int64)))

    def _hidden(self, slices: list[Slice]) -> Tensor:
        spans = [Span(part.sequence.computed_tokens, part.token_count, part.sequence.block_table) for part in slices]
        plans = [rank.kernels.begin_step(spans) for rank in self._ranks]
        token_ids = torch.tensor(list(chain.from_iterable(_token_ids(part) for part in slices)))
        positions = torch.tensor(list(chain.from_iterable(range(span.start_token, span.end_token) for span in spans)))
        rope = self._rope.rows(positions, max(span.end_token for span in spans))
        return self._decoder.hidden(token_ids, rope, plans)


def _ranks(weights: DecoderWeights, config: DecoderConfig, arena: KvArena) -> list[Rank[AttentionPlan]]:
    """As many as the arena's layout has, one after the other on this process's cores."""
    group, dtype = config.query_heads // config.kv_heads, weights.embedding.dtype
    parts = arena.layout.parts
    layers = rank_layers(weights.layers, config, [part.head_range for part in parts])
    shapes = [HeadShape(part.kv_heads * group, part.kv_heads, config.head_dim) for part in parts]
    return [
        Rank(its_layers, shape, TorchKernels(shape, PagedKv(kv.blocks, kv.scales, dtype), dtype))
        for its_layers, shape, kv in zip(layers, shapes, arena.parts, strict=True)
    ]


def _samples(part: Slice) -> bool:
    return part.sequence.computed_tokens + part.token_count == part.sequence.token_count


def _token_ids(part: Slice) -> list[int]:
    sequence: Sequence = part.sequence
    prompt_tokens = len(sequence.prompt_token_ids)
    start, end = sequence.computed_tokens, sequence.computed_tokens + part.token_count
    if start >= prompt_tokens:
        return sequence.output_token_ids[start - prompt_tokens : end - prompt_tokens]
    token_ids = sequence.prompt_token_ids[start:end]
    return token_ids if end <= prompt_tokens else token_ids + sequence.output_token_ids[: end - prompt_tokens]


def _check_layout(config: DecoderConfig, arena: KvArena) -> None:
    layout = arena.layout
    found = (layout.layers, layout.kv_heads, layout.head_dim)
    needed = (config.layers, config.kv_heads, config.head_dim)
    if found != needed:
        raise LayoutMismatchError(
            f"the arena has (layers, kv_heads, head_dim) {found}, the engine needs {needed}", field="layout"
        )
