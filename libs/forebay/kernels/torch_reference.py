"""The port in plain torch: the reference every other implementation is held to, and what serves until they exist.

Knows which forms of torch's operations are batch invariant. Does not know models or sampling.

bfloat16 goes to oneDNN. Its products were found bit-identical per row for any number of rows and threads and any zeros
appended to a reduction of at most 1,024 terms; longer ones need two rows, and no zeros. float32 goes to MKL, whose
kernels change with few rows and with the length of the reduction. So rows are padded, and the reduction over the
context is cut into pieces.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import forebay.kernels.library_paths  # noqa: F401  # before torch computes
from forebay.kernels.attention_plan import (
    ONEDNN_RUNNING_SUM,
    AttentionPlan,
    Tile,
    invariant_rows,
    plan_attention,
)
from forebay.kernels.paged_kv import PagedKv
from forebay.kernels.port import HeadShape, RopeRows, Span

EXACT_LOGITS = 64
"""Likeliest tokens per row whose logits are not rounded to bfloat16."""


class TorchKernels:
    """`Kernels[AttentionPlan]` over one arena on the CPU."""

    def __init__(self, heads: HeadShape, kv: PagedKv, dtype: torch.dtype) -> None:
        """Args: kv: of the same activation dtype."""
        self._heads = heads
        self._kv = kv
        self._dtype = dtype
        self._scale = heads.head_dim**-0.5

    def begin_step(self, spans: Sequence[Span]) -> AttentionPlan:
        """Index tensors of the step; zeroes the blocks it begins and leaves unfilled."""
        for span in spans:
            last_block, filled = divmod(span.end_token, self._kv.block_tokens)
            if filled and last_block * self._kv.block_tokens >= span.start_token:
                self._kv.clear(span.block_table[last_block])
        return plan_attention(spans, self._kv, self._heads, self._dtype)

    def linear(self, x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
        """[M, N]; few rows are padded, because other kernels would round them otherwise."""
        rows = x_MK.shape[0]
        padded = invariant_rows(rows, x_MK.shape[1], self._dtype)
        if padded == rows:
            return F.linear(x_MK, weight_NK, bias_N)
        return F.linear(F.pad(x_MK, (0, 0, 0, padded - rows)), weight_NK, bias_N)[:rows]

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Sums each row by itself in an order that only its length decides."""
        return F.rms_norm(x.float(), (x.shape[-1],), weight, eps).to(self._dtype)

    def rotate_and_write(self, qkv_MHD: Tensor, rope: RopeRows, plan: AttentionPlan, layer: int) -> Tensor:
        """Multiplications and additions are kept apart: a fused one would round by its place in the vector."""
        heads = self._heads
        rotated = qkv_MHD[:, : heads.query_heads + heads.kv_heads]
        halves = rotated.view(*rotated.shape[:2], 2, -1)
        turned = halves * rope.cos
        turned += halves.flip(2) * rope.signed_sin
        rotated.copy_(turned.flatten(2))
        self._kv.write(layer, plan.write_index, qkv_MHD[:, heads.query_heads :])
        return qkv_MHD[:, : heads.query_heads]

    def attention(self, q_MHD: Tensor, plan: AttentionPlan, layer: int) -> Tensor:
        """Gathers each group's blocks once and attends tile by tile.

        Invariant because masked probabilities are exactly 0 and every reduction over the context is a running sum in
        order of position: adding zeros at the end changes no bit.
        """
        outputs = []
        for group in plan.groups:
            keys, values = self._kv.read(layer, group.read_index, group.context_tokens)
            outputs += [self._attend(q_MHD[tile.rows], keys, values, tile) for tile in group.tiles]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _attend(self, q_MHD: Tensor, keys: Tensor, values: Tensor, tile: Tile) -> Tensor:
        heads = self._heads
        split = (tile.sequences, tile.tokens, heads.kv_heads, heads.group_size, heads.head_dim)
        rows = tile.tokens * heads.group_size
        q = q_MHD.reshape(split).transpose(1, 2).reshape(-1, rows, heads.head_dim)
        if tile.query_rows != rows:
            q = F.pad(q, (0, 0, 0, tile.query_rows - rows))
        keys, values = keys[:, : tile.context_tokens], values[:, : tile.context_tokens]
        scores = torch.baddbmm(tile.mask, q, keys.transpose(1, 2), alpha=self._scale)
        mixed = self._mix(torch.softmax(scores, -1), values)[:, :rows]
        split_heads = (tile.sequences, heads.kv_heads, tile.tokens, heads.group_size, heads.head_dim)
        return mixed.reshape(split_heads).transpose(1, 2).reshape(q_MHD.shape[0], -1)

    def _mix(self, probabilities: Tensor, values: Tensor) -> Tensor:
        """Sum of the values by pieces of the context, each short enough for its product to be a running sum."""
        piece_tokens = ONEDNN_RUNNING_SUM if self._dtype == torch.bfloat16 else self._kv.block_tokens
        mixed = torch.bmm(probabilities[..., :piece_tokens], values[:, :piece_tokens])
        if values.shape[1] <= piece_tokens:
            return mixed
        total = mixed.float()
        for start in range(piece_tokens, values.shape[1], piece_tokens):
            piece = slice(start, start + piece_tokens)
            total += torch.bmm(probabilities[..., piece], values[:, piece])
        return total.to(self._dtype)

    def logits(self, x_SK: Tensor, head_VK: Tensor) -> Tensor:
        """oneDNN rounds its results to bfloat16, which makes one greedy choice in sixteen a tie; so the likeliest are
        computed again, each by itself in float32.
        """
        logits_SV = self.linear(x_SK, head_VK).float()
        if self._dtype == torch.float32:
            return logits_SV
        likeliest_SC = logits_SV.topk(min(EXACT_LOGITS, logits_SV.shape[1]), -1, sorted=False).indices
        rows_SCK = head_VK.index_select(0, likeliest_SC.flatten()).view(*likeliest_SC.shape, x_SK.shape[1])
        exact_SC = (rows_SCK.float() * x_SK.float()[:, None]).sum(-1)
        return logits_SV.scatter_(1, likeliest_SC, exact_SC)

    def swiglu(self, gate_up_M2I: Tensor) -> Tensor:
        """torch's vector and scalar exp differ in float32 (not once they are rounded to bfloat16), so there the rows
        go one by one: where a vector ends then depends on the row alone.
        """
        gate, up = gate_up_M2I.chunk(2, -1)
        if self._dtype == torch.bfloat16:
            return F.silu(gate) * up
        return torch.stack([F.silu(row) for row in gate]) * up
