"""Every way in which Forebay refuses or fails, with the gRPC code and reason the caller sees.

Knows nothing of gRPC itself: `forebay.rpc` turns these into a status and back. Reasons are those of errors.proto.
"""

from enum import IntEnum
from typing import ClassVar, Final

RETRY_AFTER_S: Final = 1.0
"""How long a caller is told to wait where nothing better is known."""


class Code(IntEnum):
    """The google.rpc.Code values that Forebay uses."""

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15


class ForebayError(Exception):
    """Base of all errors.

    Args:
        message: one sentence for a person; never contains prompt text.
        field: request field at fault, dotted (`sampling.temperature`).
        retry_after_s: when trying again may help.
        metadata: further strings for machines, carried in ErrorInfo.metadata.
    """

    code: ClassVar[Code] = Code.INTERNAL
    reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self, message: str, *, field: str | None = None, retry_after_s: float | None = None, **metadata: str
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.metadata = metadata if field is None else {"field": field, **metadata}

    @property
    def field(self) -> str | None:
        """Request field at fault, if one is."""
        return self.metadata.get("field")


class InvalidFieldError(ForebayError):
    code, reason = Code.INVALID_ARGUMENT, "INVALID_FIELD"


class EmptyPromptError(ForebayError):
    code, reason = Code.INVALID_ARGUMENT, "EMPTY_PROMPT"


class ContextExceededError(ForebayError):
    code, reason = Code.INVALID_ARGUMENT, "CONTEXT_EXCEEDED"


class TokenOutOfRangeError(ForebayError):
    code, reason = Code.INVALID_ARGUMENT, "TOKEN_OUT_OF_RANGE"


class UnknownRoleError(ForebayError):
    code, reason = Code.INVALID_ARGUMENT, "UNKNOWN_ROLE"


class TemplateFailedError(ForebayError):
    code, reason = Code.INVALID_ARGUMENT, "TEMPLATE_FAILED"


class UnknownModelError(ForebayError):
    code, reason = Code.NOT_FOUND, "UNKNOWN_MODEL"


class UnknownRequestError(ForebayError):
    code, reason = Code.NOT_FOUND, "UNKNOWN_REQUEST"


class DuplicateRequestError(ForebayError):
    code, reason = Code.ALREADY_EXISTS, "DUPLICATE_REQUEST"


class NoWorkerError(ForebayError):
    code, reason = Code.UNAVAILABLE, "NO_WORKER"


class WorkerLostError(ForebayError):
    code, reason = Code.UNAVAILABLE, "WORKER_LOST"


class DrainingError(ForebayError):
    code, reason = Code.UNAVAILABLE, "DRAINING"


class KvExhaustedError(ForebayError):
    code, reason = Code.RESOURCE_EXHAUSTED, "KV_EXHAUSTED"


class QueueFullError(ForebayError):
    code, reason = Code.RESOURCE_EXHAUSTED, "QUEUE_FULL"


class ModelMismatchError(ForebayError):
    code, reason = Code.FAILED_PRECONDITION, "MODEL_MISMATCH"


class LayoutMismatchError(ForebayError):
    code, reason = Code.FAILED_PRECONDITION, "LAYOUT_MISMATCH"


class StaleEpochError(ForebayError):
    code, reason = Code.ABORTED, "STALE_EPOCH"


class UnknownSequenceError(ForebayError):
    code, reason = Code.NOT_FOUND, "UNKNOWN_SEQUENCE"


class NotAttachedError(ForebayError):
    code, reason = Code.NOT_FOUND, "NOT_ATTACHED"


class WriterActiveError(ForebayError):
    code, reason = Code.UNAVAILABLE, "WRITER_ACTIVE"


class NotServedYetError(ForebayError):
    code, reason = Code.UNIMPLEMENTED, "NOT_SERVED_YET"


class DeadlineExceededError(ForebayError):
    code, reason = Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"


class NumericFailureError(ForebayError):
    code, reason = Code.DATA_LOSS, "NUMERIC_FAILURE"


class DuplicateWorkerError(ForebayError):
    code, reason = Code.ALREADY_EXISTS, "DUPLICATE_WORKER"


class RequestCancelledError(ForebayError):
    code, reason = Code.CANCELLED, "REQUEST_CANCELLED"


class BlockCorruptError(ForebayError):
    code, reason = Code.DATA_LOSS, "BLOCK_CORRUPT"


class DiskFailedError(ForebayError):
    code, reason = Code.UNAVAILABLE, "DISK_FAILED"


class TenantQuotaError(ForebayError):
    code, reason = Code.RESOURCE_EXHAUSTED, "TENANT_QUOTA"


class IsolatedError(ForebayError):
    code, reason = Code.UNAVAILABLE, "ISOLATED"


class SloUnattainableError(ForebayError):
    code, reason = Code.FAILED_PRECONDITION, "SLO_UNATTAINABLE"


class UnknownWorkerError(ForebayError):
    code, reason = Code.NOT_FOUND, "UNKNOWN_WORKER"


class LastWorkerError(ForebayError):
    code, reason = Code.FAILED_PRECONDITION, "LAST_WORKER"


class NotDrainableError(ForebayError):
    code, reason = Code.FAILED_PRECONDITION, "NOT_DRAINABLE"


class NothingToAdviseError(ForebayError):
    code, reason = Code.FAILED_PRECONDITION, "NOTHING_TO_ADVISE"


class UnknownBlockError(ForebayError):
    code, reason = Code.NOT_FOUND, "UNKNOWN_BLOCK"


class BlockNotSealedError(ForebayError):
    code, reason = Code.UNAVAILABLE, "BLOCK_NOT_SEALED"


class BadFrameError(ForebayError):
    code, reason = Code.DATA_LOSS, "BAD_FRAME"


class NoDataConnectionError(ForebayError):
    code, reason = Code.UNAVAILABLE, "NO_DATA_CONNECTION"


class RemoteError(ForebayError):
    """An error of another process that carries no reason of ours, such as a lost connection."""

    reason = "REMOTE"

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code  # type: ignore[misc]  # the only error whose code is not known beforehand


class StartError(ForebayError):
    """A service cannot start. The message is the one line the operator sees: what is wrong and what to do."""

    code, reason = Code.FAILED_PRECONDITION, "START"


BY_REASON: dict[str, type[ForebayError]] = {
    error.reason: error for error in ForebayError.__subclasses__() if error not in (RemoteError, StartError)
}
"""Error class of each reason on the wire."""
