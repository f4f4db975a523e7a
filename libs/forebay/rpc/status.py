"""Errors as gRPC status with `ErrorInfo`, and back.

The one place where `forebay.errors` meets grpc. Knows nothing of servers or channels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, cast

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from forebay.errors import BY_REASON, Code, ForebayError, RemoteError
from forebay.v1 import common_pb2

DOMAIN: Final = "forebay"

_CODES: Final = frozenset(code.value for code in Code)


def to_status(error: ForebayError) -> status_pb2.Status:
    """The status a caller sees: code, message, `ErrorInfo`, and `RetryInfo` where waiting may help."""
    details = []
    if not isinstance(error, RemoteError):  # whose reason is none of ours
        details.append(
            _packed(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata))
        )
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status_pb2.Status(code=error.code, message=error.message, details=details)


def located(error: ForebayError, service_name: str) -> ForebayError:
    """The error itself; a defect names the service whose log says more, unless it came from another that it names."""
    if error.reason == ForebayError.reason:
        error.metadata.setdefault("service", service_name)
    return error


_WRITE_FAILED: Final = "Internal error from Core"
"""What grpc.aio puts in the place of a stream's status when it ends in the middle of a write."""


def from_rpc_error(error: grpc.RpcError) -> ForebayError:
    """The error of ours that a failed call carries, or a `RemoteError` when it carries none."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    status = rpc_status.from_call(cast(grpc.Call, error)) if _has_details(error) else None
    if status is not None:
        return _from_status(status)
    if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        return BY_REASON["DEADLINE_EXCEEDED"]("the deadline passed")
    if error.code() == grpc.StatusCode.INTERNAL and error.details() == _WRITE_FAILED:
        return RemoteError(Code.UNAVAILABLE, "the stream ended while it was written to, and why is lost")
    return RemoteError(_code_of(error.code()), error.details() or "the connection failed")


def to_failure(error: ForebayError) -> common_pb2.Failure:
    """The same error as a value, for streams that carry many requests."""
    metadata = dict(error.metadata)
    if error.retry_after_s is not None:
        metadata["retry_after_s"] = f"{error.retry_after_s:.3f}"
    return common_pb2.Failure(code=error.code, message=error.message, reason=error.reason, metadata=metadata)


def from_failure(failure: common_pb2.Failure) -> ForebayError:
    """The error that a `Failure` describes."""
    metadata = dict(failure.metadata)
    retry_after = metadata.pop("retry_after_s", None)
    return _error(
        failure.code, failure.message, failure.reason, metadata, None if retry_after is None else float(retry_after)
    )


@contextmanager
def translated() -> Iterator[None]:
    """Turns a failed gRPC call inside the block into an error of ours."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error


def _has_details(error: grpc.Call | grpc.aio.AioRpcError) -> bool:
    return any(key == "grpc-status-details-bin" for key, _ in error.trailing_metadata() or ())


def _from_status(status: status_pb2.Status) -> ForebayError:
    info, retry_after_s = error_details_pb2.ErrorInfo(), None
    for detail in status.details:
        detail.Unpack(info)
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    return _error(status.code, status.message, info.reason, dict(info.metadata), retry_after_s)


def _error(code: int, message: str, reason: str, metadata: dict[str, str], retry_after_s: float | None) -> ForebayError:
    kind = ForebayError if reason == ForebayError.reason else BY_REASON.get(reason)
    if kind is None:
        known = code if code in _CODES else Code.UNKNOWN
        error: ForebayError = RemoteError(Code(known), message)
    else:
        error = kind(message)
    error.metadata = metadata
    error.retry_after_s = retry_after_s
    return error


def _code_of(code: grpc.StatusCode) -> Code:
    number = code_pb2.Code.Value(code.name)
    return Code(number) if number in _CODES else Code.UNKNOWN


def _packed(message: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
