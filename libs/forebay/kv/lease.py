"""One sequence's block table and the right to write it. A record: the ledger changes it."""

from dataclasses import dataclass
from enum import Enum


class Right(Enum):
    """Who may write a sequence's unsealed blocks."""

    OWNED = "owned"  # its attachment; becomes FENCED when the lease ends
    FENCED = (
        "fenced"  # perhaps still its last owner: the right has ended, but it lives and has not said that it stopped
    )
    ORPHANED = "orphaned"  # nobody: the owner's process is gone
    OFFERED = "offered"  # nobody: the owner handed it over


@dataclass(slots=True)
class SequenceLease:
    """The block table of one sequence and the right to write it.

    Invariant: blocks before len(hashes) are sealed, those after it are leased to this sequence alone.
    """

    sequence_id: str
    attachment_id: int  # owner, or last owner
    epoch: int  # every new owner and every hand-over has a new one
    granted_at_s: float  # to the owner
    ends_at_s: float  # OWNED: it is fenced; FENCED: it is overdue; otherwise: it is released
    block_ids: list[int]
    hashes: list[bytes]  # of the sealed blocks, in order
    tenant: str = ""
    right: Right = Right.OWNED
    taken_with_epoch: int | None = None  # epoch of the manifest with which the owner took it over
    handed_over_epoch: int | None = None  # OFFERED: epoch the last owner had
    fence_number: int = 0  # FENCED: whoever knows a greater number of this ledger wrote after the fence was raised
    is_overdue: bool = False  # FENCED: its age has been reported
    request_number: int | None = None  # with which its owner asked for it; 0: with several, of which it has heard some

    def is_known_as(self, epoch: int) -> bool:
        """Whether a caller with this epoch, or with the manifest the owner came with, means this grant."""
        return epoch in (self.epoch, self.taken_with_epoch)
