"""Execution modes on the wire."""

from typing import Final

from forebay.errors import InvalidFieldError
from forebay.routing.plan import Mode
from forebay.v1 import common_pb2

_NUMBERS: Final = {
    Mode.LOCAL: common_pb2.EXECUTION_MODE_LOCAL,
    Mode.SPLIT: common_pb2.EXECUTION_MODE_SPLIT,
    Mode.RESUME: common_pb2.EXECUTION_MODE_RESUME,
}
_FORCED: Final = {
    common_pb2.EXECUTION_MODE_UNSPECIFIED: None,
    **{_NUMBERS[mode]: mode for mode in (Mode.LOCAL, Mode.SPLIT)},
}


def mode_to_proto(mode: Mode) -> "common_pb2.ExecutionMode.ValueType":
    """The mode's number."""
    return _NUMBERS[mode]


def forced_mode_from_proto(number: "common_pb2.ExecutionMode.ValueType") -> Mode | None:
    """The mode that a caller forces; None: none. Raises InvalidFieldError for what cannot be forced."""
    if number not in _FORCED:
        raise InvalidFieldError("mode must be LOCAL or SPLIT if set; RESUME follows from the cache", field="mode")
    return _FORCED[number]
