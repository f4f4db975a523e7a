"""Whether a worker's process can still write: the kernel's word."""

from forebay.host.process_identity import ProcessIdentity
from forebay.kv.attachments import WorkerProcess


def is_alive(process: WorkerProcess) -> bool:
    """Whether the process runs. A pid that was given to a later process does not count."""
    return ProcessIdentity(process.pid, process.start_ticks).is_running()
