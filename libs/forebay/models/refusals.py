"""The one-line refusals of model files: what file, what is wrong, what to do. Knows nothing of any format."""

from collections.abc import Iterable
from pathlib import Path

from forebay.errors import StartError


def damaged(path: Path, what: str) -> StartError:
    """The file is not what it says it is: fetching it again is the remedy."""
    return StartError(f"{path}: {what}; the file is damaged or incomplete, fetch it again")


def unsupported(path: Path, what: str, supported: Iterable[str]) -> StartError:
    """The file is sound, but holds something that Forebay does not serve."""
    return StartError(f"{path}: {what} is not supported; supported: {', '.join(supported)}")
