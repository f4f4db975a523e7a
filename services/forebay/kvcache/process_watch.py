"""Whether a worker's process can still write: the kernel's word, from /proc. Linux only."""

from pathlib import Path

from forebay.kv.attachments import WorkerProcess


def is_alive(process: WorkerProcess) -> bool:
    """Whether the process runs. A pid that was given to a later process does not count."""
    try:
        stat = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    # The command in field 2 may hold spaces and parentheses: count from behind it. fields[0] is field 3.
    fields = stat.rpartition(")")[2].split()
    state, thread_count, start_ticks = fields[0], int(fields[17]), int(fields[19])
    if start_ticks != process.start_ticks:
        return False
    # A process whose first thread has ended is a zombie while its other threads go on writing.
    return state not in "ZX" or thread_count > 1
