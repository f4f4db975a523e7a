"""What a step costs at least, in operations and bytes, from the model's shape and the step's size. Pure.

With N parameters in the matrices of all layers, H in the head, and κ bytes of KV per token (design, section 5):

    operations = 2·N·rows + 2·H·sampled rows + 4·query width·layers·(tokens that each row attends to, summed over rows)
    bytes      = weights of the layers + those of the head if a row is sampled + κ·(contexts + rows)

The weights and each context count as read once per step, KV as written once per row; activations, which stay in the
caches, and the few embedding rows are left out. Both are what the roofline model needs: S. Williams, A. Waterman,
D. Patterson, "Roofline: An Insightful Visual Performance Model for Multicore Architectures", CACM 52(4), 2009.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from forebay.kernels.peaks import Arithmetic


@dataclass(frozen=True, slots=True)
class StepSize:
    """All that a step's cost depends on.

    attended_tokens: tokens that each row attends to, itself included, summed over the rows. context_tokens: lengths of
    the slices' contexts, their own tokens included, summed over the slices.
    """

    row_count: int
    sampled_row_count: int
    attended_tokens: int
    context_tokens: int


@dataclass(frozen=True, slots=True)
class Operations:
    """Multiplications and additions, each counted as one.

    model: as the model has them. machine: what computes them, by kind; twice as many where an input of 16 bits takes
    two products of bytes.
    """

    model: int
    machine: Mapping[Arithmetic, int]


@dataclass(frozen=True, slots=True)
class StepCost:
    """Of one step. operations: the model's."""

    operations: int
    moved_bytes: int


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What a model's steps cost by their size.

    row_operations: of a row in the matrices of all layers; head_operations: of a sampled row in the head;
    attention_operations: of a row for each token it attends to, all layers together.
    """

    row_operations: Operations
    head_operations: Operations
    attention_operations: Operations
    layer_bytes: int
    head_bytes: int
    kv_token_bytes: int

    def of(self, size: StepSize) -> StepCost:
        """What a step of that size costs."""
        operations = (
            size.row_count * self.row_operations.model
            + size.sampled_row_count * self.head_operations.model
            + size.attended_tokens * self.attention_operations.model
        )
        head_bytes = self.head_bytes if size.sampled_row_count else 0
        kv_bytes = self.kv_token_bytes * (size.context_tokens + size.row_count)
        return StepCost(operations, self.layer_bytes + head_bytes + kv_bytes)
