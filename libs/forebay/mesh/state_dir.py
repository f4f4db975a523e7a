"""The folder in which a local mesh keeps its record, logs, spans and lock. Knows no process."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from forebay.errors import StartError
from forebay.host import file_lock

STATE_DIR_VARIABLE: Final = "FOREBAY_STATE_DIR"
_FOLDER_NAME: Final = ".forebay"


def find_state_dir(environment: Mapping[str, str], start: Path) -> Path:
    """`$FOREBAY_STATE_DIR`, else the nearest `.forebay/` from `start` upwards, else `start/.forebay`. Absolute."""
    if named := environment.get(STATE_DIR_VARIABLE):
        return Path(named).expanduser().absolute()
    start = start.absolute()
    for folder in (start, *start.parents):
        if (folder / _FOLDER_NAME).is_dir():
            return folder / _FOLDER_NAME
    return start / _FOLDER_NAME


def current_state_dir() -> Path:
    """The state folder for this process."""
    return find_state_dir(os.environ, Path.cwd())


def elsewhere(command: str) -> str:
    """How to name another folder to a command of a mesh that was started elsewhere."""
    return f"one that was started in another folder: {STATE_DIR_VARIABLE}=FOLDER/{_FOLDER_NAME} {command}"


@contextmanager
def locked(state_dir: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """One `up` or `down` of a state folder at a time; `on_wait` is called once if another is at work.

    The lock goes with the process that holds it, however that ends. Raises StartError if the folder is not writable.
    """
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        lock = ExitStack()
        lock.enter_context(file_lock.locked(state_dir / "lock", on_wait))
    except OSError as error:
        raise StartError(
            f"cannot write to {state_dir} ({error.strerror}); set {STATE_DIR_VARIABLE} to a folder of yours"
        ) from error
    with lock:
        yield
