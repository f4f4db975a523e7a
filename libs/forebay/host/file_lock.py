"""One process at a time, by a lock on a file. The lock goes with the process that holds it, however that ends."""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds the lock inside the block; `on_wait` is called once if another process has it. The file stays.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("w") as file:
        if not try_lock(file.fileno()):
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def try_lock(file_descriptor: int) -> bool:
    """Locks an open file unless another holds it; returns whether it did."""
    try:
        fcntl.flock(file_descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(file_descriptor: int) -> None:
    """Gives a lock back, also where the file stays open elsewhere, as behind a mapping."""
    fcntl.flock(file_descriptor, fcntl.LOCK_UN)
