"""The folder of the DISK tier: finds, makes or replaces its one file, and locks it for this service.

A cache is replaceable: a file of ours of another content, layout, size or format is made anew, which one log line says.
What is not ours is never touched. Knows headers and sizes; not what slots hold.
"""

import errno
import logging
import os
from pathlib import Path
from typing import Final

from forebay.errors import StartError
from forebay.host.file_lock import try_lock
from forebay.kv.layout import KvLayout
from forebay.kvcache.disk.block_file import OpenFile
from forebay.kvcache.disk.header import MAGIC, FileHeader
from forebay.kvcache.disk.shape import FORGOTTEN_OFFSET, FileShape
from forebay.kvcache.disk.store import DiskStore

FILE_NAME: Final = "forebay-kv.blocks"
_OF_THE_FILE_SYSTEM: Final = frozenset({"lost+found"})
_STAT_BLOCK_BYTES: Final = 512

_log = logging.getLogger(__name__)


def open_folder(folder: Path, size_bytes: int, content_key: str, layout: KvLayout) -> DiskStore:
    """The store in `folder`, of at most `size_bytes`, with what an earlier service left there under this key.

    All space is taken at once. Errors: StartError when another service uses the folder, it is not ours, or space is
    short.
    """
    shape = FileShape.within(size_bytes, layout.block_bytes)
    if shape.block_count == 0:
        raise StartError(f"--disk-bytes {size_bytes} has no room for one block of {shape.stride_bytes} bytes; raise it")
    try:
        file = _open_locked(folder)
        try:
            _prepare(file, folder, FileHeader(content_key, layout, shape))
        except BaseException:
            os.close(file)
            raise
    except OSError as error:
        raise StartError(f"cannot use {folder}: {error.strerror}; choose another --disk-dir") from error
    return DiskStore(OpenFile(file), shape)


def _open_locked(folder: Path) -> int:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    names = {entry.name for entry in folder.iterdir()} - _OF_THE_FILE_SYSTEM
    if names and FILE_NAME not in names:
        raise StartError(f"{folder} holds other files; give --disk-dir a folder of its own")
    file = os.open(folder / FILE_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not try_lock(file):
        os.close(file)
        raise StartError(f"another KV-cache service uses {folder}; choose another --disk-dir")
    return file


def _prepare(file: int, folder: Path, header: FileHeader) -> None:
    found = os.pread(file, FORGOTTEN_OFFSET, 0)
    if found == header.encoded():
        _allocate(file, folder, header.shape.size_bytes)  # again, for it may have been truncated
        return
    if found.strip(b"\0"):
        if not found.startswith(MAGIC):
            raise StartError(f"{folder / FILE_NAME} is not a file of Forebay; choose another --disk-dir")
        _log.warning("replacing the KV blocks in %s: %s", folder, header.differences(found))
    # No header stands before all else does: a service killed here leaves a file that is made anew.
    os.ftruncate(file, 0)
    _allocate(file, folder, header.shape.size_bytes)
    OpenFile(file).write_at(0, header.encoded())
    os.fsync(file)


def _allocate(file: int, folder: Path, size_bytes: int) -> None:
    before, room = os.fstat(file), os.fstatvfs(file)
    free_bytes = room.f_bavail * room.f_frsize
    # A file system finds out only when it is full, and with it all others who write to it.
    if size_bytes - before.st_blocks * _STAT_BLOCK_BYTES > free_bytes:
        raise _short_of_space(folder, free_bytes, size_bytes, os.strerror(errno.ENOSPC))
    try:
        os.posix_fallocate(file, 0, size_bytes)
    except OSError as error:
        os.ftruncate(file, before.st_size)
        raise _short_of_space(folder, free_bytes, size_bytes, str(error.strerror)) from error


def _short_of_space(folder: Path, free_bytes: int, size_bytes: int, why: str) -> StartError:
    return StartError(
        f"{folder} has {free_bytes} bytes free, {size_bytes} are wanted ({why}); free some or lower --disk-bytes"
    )
