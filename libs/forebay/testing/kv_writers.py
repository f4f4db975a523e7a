"""Workers of the KV model: what each believes to hold, and what it could write at the worst. Knows no ledger."""

from dataclasses import dataclass, field

from forebay.kv.attachments import WorkerProcess
from forebay.kv.grant import Grant, Renewal


@dataclass
class Held:
    """What a worker believes about a sequence."""

    epoch: int
    prompt: int
    block_ids: list[int]
    stopped_before: int  # it does not write to blocks before this index any more
    acknowledged: int  # blocks it knows to be sealed
    lease_until_s: float


@dataclass
class Answer:
    """A grant on its way to a worker."""

    worker: "Worker"
    attachment_id: int
    asked_s: float
    sequence_id: str
    prompt: int
    grant: Grant
    request_number: int


@dataclass
class Worker:
    """One worker process."""

    process: WorkerProcess
    is_alive: bool = True
    is_stopped: bool = False  # says and hears nothing, and may go on at any moment, in the middle of a step
    attachment_id: int = 0
    last_answer: int | None = None  # number of the last heartbeat's answer on this attachment
    held: dict[str, Held] = field(default_factory=dict)
    given_up: set[int] = field(default_factory=set)  # epochs it has released or handed over: it keeps its word
    given_up_requests: set[int] = field(default_factory=set)  # whose answers it will not use

    def give_up(self, sequence_id: str) -> None:
        """It writes to this sequence no more."""
        self.given_up.add(self.held.pop(sequence_id).epoch)

    @property
    def speaks(self) -> bool:
        """Whether it sends and hears."""
        return self.is_alive and not self.is_stopped

    def writable(self) -> set[int]:
        """Blocks it could write, at the worst: a step begun before its lease ended has not ended yet."""
        if not self.is_alive:
            return set()
        return {block for held in self.held.values() for block in held.block_ids[held.stopped_before :]}

    def take_in(self, answer: Answer, now_s: float, lease_s: float) -> bool:
        """Uses a grant of the present attachment, unless its answer took a lease or longer; says whether it did."""
        grant, old = answer.grant, self.held.get(answer.sequence_id)
        is_too_late = now_s >= answer.asked_s + lease_s or answer.attachment_id != self.attachment_id
        is_too_late |= answer.request_number in self.given_up_requests
        if is_too_late or grant.epoch in self.given_up or (old is not None and old.epoch > grant.epoch):
            return False
        cached = grant.cached_block_count
        stopped_before = max(cached, old.stopped_before) if old and old.epoch == grant.epoch else cached
        self.held[answer.sequence_id] = Held(
            grant.epoch, answer.prompt, list(grant.block_ids), stopped_before, cached, answer.asked_s + lease_s
        )
        return True

    def hear(self, renewal: Renewal, now_s: float, lease_s: float) -> None:
        """Takes in a heartbeat's answer. What is lost it seals no more, but a step may still be writing to it."""
        self.last_answer = renewal.number
        for sequence_id, held in self.held.items():
            held.lease_until_s = now_s + (0.0 if sequence_id in renewal.lost else lease_s)
