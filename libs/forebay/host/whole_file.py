"""Files that are there whole or not at all: a reader never sees half of one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def making_whole(path: Path) -> Iterator[Path]:
    """Where another program can make a file, which takes its name when the block ends; an error leaves what was there.

    Raises:
        OSError: the folder cannot be made, or nothing was made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def writing_whole(path: Path, *, is_synced: bool = True) -> Iterator[BinaryIO]:
    """A file to write, which takes its name when the block ends; an error leaves what was there.

    is_synced: whether it is on the disk by then, so that a power cut cannot leave a name without content.

    Raises:
        OSError: the folder cannot be made or written, or the disk is full.
    """
    with making_whole(path) as partial, partial.open("wb") as file:
        yield file
        if is_synced:
            file.flush()
            os.fsync(file.fileno())


def write_whole(path: Path, content: bytes) -> None:
    """Makes the file with that content, which can be made again if a power cut loses it. Raises OSError."""
    with writing_whole(path, is_synced=False) as file:
        file.write(content)
