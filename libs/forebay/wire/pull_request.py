"""What the caller of PullBlocks says, and the checks that need nothing but the message."""

from dataclasses import dataclass
from typing import Final

from forebay.errors import InvalidFieldError
from forebay.kv.block_transport import PullRequest
from forebay.kv.layout import KvLayout
from forebay.v1 import pull_pb2
from forebay.wire.kv_rights import check_id, checked_hashes
from forebay.wire.layout import layout_from_proto, layout_to_proto

MAX_PULL_BLOCKS: Final = 65_536
MAX_SEAL_WAIT_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Opening:
    """A pull as it is asked for; as PullOpening."""

    sequence_id: str | None
    block_hashes: list[bytes]
    first_block_index: int
    layout: KvLayout
    credit_bytes: int
    seal_wait_s: float
    wants_data_connection: bool


def opening_to_proto(
    request: PullRequest, first_block_index: int, credit_bytes: int, *, wants_data_connection: bool
) -> pull_pb2.PullBlocksRequest:
    """The first request of a session."""
    return pull_pb2.PullBlocksRequest(
        opening=pull_pb2.PullOpening(
            sequence_id=request.sequence_id or "",
            block_hashes=request.block_hashes,
            first_block_index=first_block_index,
            layout=layout_to_proto(request.layout),
            credit_bytes=credit_bytes,
            seal_wait_s=request.seal_wait_s,
            wants_data_connection=wants_data_connection,
        )
    )


def checked_opening(message: pull_pb2.PullBlocksRequest) -> Opening:
    """The pull that is asked for.

    Raises:
        InvalidFieldError: it is none, or a field is out of range.
    """
    if message.WhichOneof("content") != "opening":
        raise InvalidFieldError("the first request must open the pull", field="opening")
    opening = message.opening
    if opening.sequence_id:
        check_id(opening.sequence_id, "opening.sequence_id")
    if not 1 <= len(opening.block_hashes) <= MAX_PULL_BLOCKS:
        raise InvalidFieldError(f"1..{MAX_PULL_BLOCKS} blocks can be pulled at once", field="opening.block_hashes")
    if opening.first_block_index >= len(opening.block_hashes):
        raise InvalidFieldError("the first block wanted is none of those named", field="opening.first_block_index")
    if not 0 <= opening.seal_wait_s <= MAX_SEAL_WAIT_S:
        raise InvalidFieldError(f"the wait must be 0..{MAX_SEAL_WAIT_S:g} s", field="opening.seal_wait_s")
    return Opening(
        sequence_id=opening.sequence_id or None,
        block_hashes=checked_hashes(opening.block_hashes, "opening.block_hashes"),
        first_block_index=opening.first_block_index,
        layout=layout_from_proto(opening.layout),
        credit_bytes=opening.credit_bytes,
        seal_wait_s=opening.seal_wait_s,
        wants_data_connection=opening.wants_data_connection,
    )


def grant_to_proto(credit_bytes: int, repeat_block_indexes: tuple[int, ...] = ()) -> pull_pb2.PullBlocksRequest:
    """A later request."""
    return pull_pb2.PullBlocksRequest(
        grant=pull_pb2.PullGrant(credit_bytes=credit_bytes, repeat_block_indexes=repeat_block_indexes)
    )


def checked_grant(message: pull_pb2.PullBlocksRequest) -> pull_pb2.PullGrant:
    """The grant. Raises InvalidFieldError when it is none, or is empty."""
    if message.WhichOneof("content") != "grant":
        raise InvalidFieldError("a pull is opened once; later requests grant", field="grant")
    if not message.grant.credit_bytes and not message.grant.repeat_block_indexes:
        raise InvalidFieldError("a grant must grant bytes or ask for a block again", field="grant.credit_bytes")
    return message.grant
