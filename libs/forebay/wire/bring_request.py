"""What the caller of BringBlocks says, and the checks that need nothing but the message."""

import math
from dataclasses import dataclass

from forebay.errors import InvalidFieldError
from forebay.kv.block_transport import SourceNode
from forebay.kv.layout import KvLayout
from forebay.v1 import pull_pb2
from forebay.wire.kv_rights import check_id, checked_hashes
from forebay.wire.layout import layout_from_proto
from forebay.wire.pull_request import MAX_PULL_BLOCKS, MAX_SEAL_WAIT_S

MAX_BRING_S = 3600.0


@dataclass(frozen=True, slots=True)
class BringWish:
    """Blocks wanted from another node; as BringBlocksRequest.

    source_hashes, layout: of the blocks as they lie there; block_hashes: of those wanted here.
    """

    source: SourceNode
    source_hashes: list[bytes]
    layout: KvLayout
    model_digest: str
    sequence_id: str | None
    block_hashes: list[bytes]
    timeout_s: float
    seal_wait_s: float


def checked_wish(request: pull_pb2.BringBlocksRequest) -> BringWish:
    """What is wanted.

    Raises:
        InvalidFieldError: a field is missing or out of range.
    """
    source = request.source
    check_id(source.node_id, "source.node_id")
    if source.sequence_id:
        check_id(source.sequence_id, "source.sequence_id")
    for hashes, field in ((source.block_hashes, "source.block_hashes"), (request.block_hashes, "block_hashes")):
        if not 1 <= len(hashes) <= MAX_PULL_BLOCKS:
            raise InvalidFieldError(f"1..{MAX_PULL_BLOCKS} blocks can be brought at once", field=field)
    if not (math.isfinite(request.timeout_s) and 0 < request.timeout_s <= MAX_BRING_S):
        raise InvalidFieldError(f"a transfer takes more than 0 and at most {MAX_BRING_S:g} s", field="timeout_s")
    if not 0 <= request.seal_wait_s <= MAX_SEAL_WAIT_S:
        raise InvalidFieldError(f"the wait must be 0..{MAX_SEAL_WAIT_S:g} s", field="seal_wait_s")
    return BringWish(
        source=SourceNode(source.node_id, source.kvcache_address),
        source_hashes=checked_hashes(source.block_hashes, "source.block_hashes"),
        layout=layout_from_proto(source.layout),
        model_digest=source.model_digest,
        sequence_id=source.sequence_id or None,
        block_hashes=checked_hashes(request.block_hashes, "block_hashes"),
        timeout_s=request.timeout_s,
        seal_wait_s=request.seal_wait_s,
    )
