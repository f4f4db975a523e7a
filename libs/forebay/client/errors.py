"""What only a client can meet. All that the services refuse are the classes of `forebay.errors`."""

from typing import Final

from forebay.errors import Code, ForebayError, RemoteError

_NOT_UP: Final = "is the mesh up? ./scripts/up"


class UnreachableError(RemoteError):
    """Nothing that speaks our protocol answers at the address."""

    def __init__(self, target: str, detail: str, service: str = "router") -> None:
        message = f"cannot reach a {service} at {target.replace(',', ' or ')}: {_NOT_UP}"
        super().__init__(Code.UNAVAILABLE, message)
        self.metadata = {"target": target, "detail": detail}


class ConnectionLostError(RemoteError):
    """The router went away in the middle of an answer."""

    def __init__(self, target: str, detail: str) -> None:
        super().__init__(Code.UNAVAILABLE, f"lost the router at {target} before the answer was complete")
        self.metadata = {"target": target, "detail": detail}


class BrokenAnswerError(RemoteError):
    """The router's answer does not follow router.proto."""

    def __init__(self, message: str) -> None:
        super().__init__(Code.INTERNAL, message)


def sharpened(error: ForebayError, target: str, *, has_answered: bool) -> ForebayError:
    """The same failure, said as precisely as a client can: who could not be reached, or was lost."""
    if type(error) is not RemoteError or error.code != Code.UNAVAILABLE:
        return error
    kind = ConnectionLostError if has_answered else UnreachableError
    return kind(target, error.message)
