"""Workers' connections: who is attached, with which process, and for which sequences each may have to answer."""

from dataclasses import dataclass, field

from forebay.errors import DuplicateWorkerError, NotAttachedError


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """A process that writes KV. The start time tells it from a later process with the same pid."""

    worker_id: str
    pid: int
    start_ticks: int  # clock ticks since boot


@dataclass(slots=True)
class AttachmentRecord:
    """One connection of a worker, from attach to detach."""

    attachment_id: int
    process: WorkerProcess
    is_open: bool = True
    sequence_ids: set[str] = field(default_factory=set)  # owned, fenced or orphaned; not those handed over


class Attachments:
    """All attachments; a closed one is kept while the process behind it could still write a sequence."""

    def __init__(self) -> None:
        self._by_id: dict[int, AttachmentRecord] = {}

    @property
    def open_count(self) -> int:
        """Attachments that have not ended."""
        return sum(attachment.is_open for attachment in self._by_id.values())

    def processes(self) -> list[tuple[int, WorkerProcess]]:
        """Ids and processes of all that are kept."""
        return [(attachment.attachment_id, attachment.process) for attachment in self._by_id.values()]

    def sequences_of(self, process: WorkerProcess) -> list[str]:
        """What a worker's attachments, ended ones included, have to answer for."""
        return [one for held in self._by_id.values() if held.process == process for one in held.sequence_ids]

    def process(self, attachment_id: int) -> WorkerProcess:
        """Process of an attachment that is kept."""
        return self._by_id[attachment_id].process

    def add(self, attachment_id: int, process: WorkerProcess) -> int:
        """Opens an attachment; returns its id.

        Errors: DuplicateWorkerError while another attachment of this worker id is open.
        """
        worker_id = process.worker_id
        if any(held.is_open and held.process.worker_id == worker_id for held in self._by_id.values()):
            raise DuplicateWorkerError(f"worker {worker_id!r} is attached", worker_id=worker_id)
        self._by_id[attachment_id] = AttachmentRecord(attachment_id, process)
        return attachment_id

    def open(self, attachment_id: int) -> AttachmentRecord:
        """An attachment that has not ended.

        Errors: NotAttachedError.
        """
        attachment = self._by_id.get(attachment_id)
        if attachment is None or not attachment.is_open:
            raise NotAttachedError("this attachment has ended: attach again")
        return attachment

    def close(self, attachment_id: int) -> tuple[str, ...]:
        """Ends an attachment, if it has not ended yet; returns the sequences it has to answer for."""
        attachment = self._by_id.get(attachment_id)
        if attachment is None:
            return ()
        attachment.is_open = False
        sequence_ids = tuple(attachment.sequence_ids)
        self._forget_if_done(attachment)
        return sequence_ids

    def disown(self, attachment_id: int, sequence_id: str) -> None:
        """The attachment has nothing to do with this sequence any more."""
        attachment = self._by_id.get(attachment_id)
        if attachment is not None:
            attachment.sequence_ids.discard(sequence_id)
            self._forget_if_done(attachment)

    def _forget_if_done(self, attachment: AttachmentRecord) -> None:
        if not attachment.is_open and not attachment.sequence_ids:
            del self._by_id[attachment.attachment_id]
