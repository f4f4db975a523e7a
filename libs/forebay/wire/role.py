"""Roles on the wire."""

from typing import Final

from forebay.errors import InvalidFieldError
from forebay.role import Role
from forebay.v1 import common_pb2

_NUMBERS: Final = {
    Role.ROUTER: common_pb2.SERVICE_ROLE_ROUTER,
    Role.TOKENIZER: common_pb2.SERVICE_ROLE_TOKENIZER,
    Role.PREFILL: common_pb2.SERVICE_ROLE_PREFILL,
    Role.DECODE: common_pb2.SERVICE_ROLE_DECODE,
    Role.KVCACHE: common_pb2.SERVICE_ROLE_KVCACHE,
    Role.GATEWAY: common_pb2.SERVICE_ROLE_GATEWAY,
}
_ROLE_OF: Final = {number: role for role, number in _NUMBERS.items()}


def role_to_proto(role: Role) -> "common_pb2.ServiceRole.ValueType":
    """The role's number."""
    return _NUMBERS[role]


def role_from_proto(number: "common_pb2.ServiceRole.ValueType") -> Role:
    """The role of a number. Raises InvalidFieldError for one that is not known."""
    if number not in _ROLE_OF:
        raise InvalidFieldError(f"role {number} is not known", field="role")
    return _ROLE_OF[number]
