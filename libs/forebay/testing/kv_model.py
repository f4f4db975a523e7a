"""A model of one node for property tests: the real ledger, simulated block contents, and workers that misbehave.

Worker processes die, are stopped and go on, return, and write into every block they could still write, however long ago
their lease ended. Messages and answers may be lost, late or repeated. `check` states the rules of KV rights, and raises
AssertionError when one is broken.
"""

from collections.abc import Callable

from xxhash import xxh3_128_digest

from forebay.errors import DuplicateWorkerError, ForebayError
from forebay.kv.attachments import WorkerProcess
from forebay.kv.effects import CopyBlock, Effects
from forebay.kv.grant import Grant, Renewal, SealEntry, TakeOver
from forebay.kv.ledger import BlockLedger, LedgerSettings
from forebay.kv.tier import Tier
from forebay.testing.kv_content import GARBAGE, ModelContent, ServiceKilledError
from forebay.testing.kv_writers import Answer, Held, Worker

DEVICE_BLOCKS, LEASE_S, GRACE_S = 12, 10.0, 2.0
SEQUENCE_IDS = tuple(f"s{number}" for number in range(5))


def chained(prompt: int, depth: int) -> bytes:
    """Hash of a prompt's block: all prompts begin alike, then differ."""
    return xxh3_128_digest(bytes([prompt if depth >= 1 else 0, depth]))


Message = tuple[Worker, Callable[[], Grant | None]]


class ModelNode:
    """One node with three workers."""

    def __init__(self, tiers: ModelContent, ledger_type: type[BlockLedger] = BlockLedger) -> None:
        self.tiers = tiers
        self.ledger_type = ledger_type
        self.now_s = 0.0
        self.ledger = ledger_type(tiers.store, LedgerSettings(LEASE_S, GRACE_S))
        self.messages: list[Message] = []
        self.answers: list[Answer] = []  # late ones
        self.request_count = 0
        self.manifests: list[tuple[str, int, int]] = [("s0", 77, 0)]  # sequence, epoch, prompt
        self.epoch_owner: dict[int, tuple[str, WorkerProcess]] = {}
        self.workers = [Worker(WorkerProcess(f"w{number}", 100 + number, 0)) for number in range(3)]
        for number in range(3):
            self.attach(number, 0, 0)

    # What may happen.

    def attach(self, a: int, b: int, c: int) -> None:
        worker = self.workers[a % 3]
        if not worker.speaks:
            return
        try:
            worker.attachment_id, worker.last_answer = self.ledger.attach(worker.process), None
        except DuplicateWorkerError:
            return

    def begin(self, a: int, b: int, c: int) -> None:
        worker, sequence_id, prompt = self.workers[a % 3], SEQUENCE_IDS[b % 5], c % 7
        count = 1 + (a + c) % 6
        hashes = [chained(prompt, depth) for depth in range(min(count, b % 7))]
        attachment_id = worker.attachment_id
        self.ask(
            worker,
            sequence_id,
            prompt,
            lambda: self.ledger.begin(attachment_id, sequence_id, hashes, count, self.now_s),
            c,
        )

    def take_over(self, a: int, b: int, c: int) -> None:
        worker, attachment_id = self.workers[a % 3], self.workers[a % 3].attachment_id
        sequence_id, epoch, prompt = self.manifests[-1 - b % min(len(self.manifests), 8)]
        take_over = TakeOver(epoch, c % 8 or None, a % 4 if b % 3 == 0 else None)
        self.ask(
            worker,
            sequence_id,
            prompt,
            lambda: self.ledger.take_over(attachment_id, sequence_id, take_over, self.now_s),
            c,
        )

    def extend(self, a: int, b: int, c: int) -> None:
        if (chosen := self.chosen(a, b)) is None:
            return
        worker, sequence_id, held = chosen
        attachment_id, epoch = worker.attachment_id, held.epoch
        self.ask(
            worker,
            sequence_id,
            held.prompt,
            lambda: self.ledger.extend(attachment_id, sequence_id, epoch, 1 + c % 3, self.now_s),
            c,
        )

    def seal(self, a: int, b: int, c: int) -> None:
        chosen = self.chosen(a, b)
        if chosen is None or self.now_s >= chosen[2].lease_until_s:
            return
        worker, sequence_id, held = chosen
        end = min(len(held.block_ids), held.stopped_before + c % 7)
        for depth in range(held.stopped_before, end):
            self.tiers.blocks[Tier.DEVICE][held.block_ids[depth]] = chained(held.prompt, depth)
        hashes = [chained(held.prompt, depth) for depth in range(held.acknowledged, end)]
        entry = SealEntry(sequence_id, held.epoch, held.acknowledged, hashes, hand_over=c % 7 == 0)
        held.stopped_before = end
        if entry.hand_over:
            worker.give_up(sequence_id)
        self.send_seal(worker, held, entry, is_lost=c % 13 == 0)

    def release(self, a: int, b: int, c: int) -> None:
        if (chosen := self.chosen(a, b)) is not None:
            worker, sequence_id, held = chosen
            worker.give_up(sequence_id)
            self.send(worker, self.releasing(worker.attachment_id, sequence_id, held.epoch), is_lost=c % 11 == 0)

    def release_of_another(self, a: int, b: int, c: int) -> None:
        worker, (sequence_id, epoch, _) = self.workers[a % 3], self.manifests[-1 - b % min(len(self.manifests), 8)]
        if sequence_id in worker.held and worker.held[sequence_id].epoch == epoch:
            worker.give_up(sequence_id)
        self.send(worker, self.releasing(worker.attachment_id, sequence_id, epoch), is_lost=False)

    def renew(self, a: int, b: int, c: int) -> None:
        """Names all it may write. The heartbeat may arrive late, or again; its answer may be lost."""
        worker = self.workers[a % 3]
        attachment_id, last_answer = worker.attachment_id, worker.last_answer
        named = [(sequence_id, held.epoch) for sequence_id, held in worker.held.items()]

        answers: list[Renewal] = []

        def deliver() -> None:
            answers.append(self.ledger.renew(attachment_id, named, self.now_s, last_answer))

        self.send(worker, deliver, is_lost=b % 5 == 0)
        if answers and b % 5 > 1:
            worker.hear(answers[0], self.now_s, LEASE_S)

    def wait(self, a: int, b: int, c: int) -> None:
        self.now_s += (0.5, 1.0, 3.0, 4.0, LEASE_S - 1, LEASE_S + GRACE_S / 2)[a % 6]
        if b % 3:
            self.expire()

    def late_answer(self, a: int, b: int, c: int) -> None:
        """A worker takes in an answer that was long under way."""
        if self.answers and self.answers[a % len(self.answers)].worker.speaks:
            self.take_in(self.answers.pop(a % len(self.answers)))

    def stop(self, a: int, b: int, c: int) -> None:
        self.workers[a % 3].is_stopped = True

    def go_on(self, a: int, b: int, c: int) -> None:
        self.workers[a % 3].is_stopped = False

    def crash(self, a: int, b: int, c: int) -> None:
        self.workers[a % 3].is_alive = False

    def restart(self, a: int, b: int, c: int) -> None:
        old = self.workers[a % 3]
        if not old.is_alive:
            process = WorkerProcess(old.process.worker_id, old.process.pid, old.process.start_ticks + 1)
            self.workers[a % 3] = Worker(process)
            self.attach(a, b, c)

    def break_stream(self, a: int, b: int, c: int) -> None:
        worker = self.workers[a % 3]
        self.ledger.detach(worker.attachment_id, self.now_s, process_is_gone=not worker.is_alive)

    def look_for_dead(self, a: int, b: int, c: int) -> None:
        alive = {worker.process for worker in self.workers if worker.is_alive}
        for attachment_id, process in self.ledger.processes():
            if process not in alive:
                self.ledger.detach(attachment_id, self.now_s, process_is_gone=True)

    def kill_service(self, a: int, b: int, c: int) -> None:
        """Workers keep the memory of the service that is gone, which nobody reads any more."""
        self.count_up()
        self.tiers.start()
        first_number = max(self.epoch_owner, default=0) + 1000
        self.ledger = self.ledger_type(self.tiers.store, LedgerSettings(LEASE_S, GRACE_S, first_number))
        self.messages.clear()
        self.answers.clear()
        for number, worker in enumerate(self.workers):
            worker.held.clear()
            worker.attachment_id = 0
            if not worker.is_stopped:
                self.attach(number, 0, 0)

    def count_up(self) -> None:
        """What the ledger of this run of the service has counted."""
        stats = self.ledger.stats()
        self.tiers.reached.update(
            {"taken over": stats.take_overs, "found": stats.prefix_blocks_found, "evicted": stats.evicted_blocks}
        )

    def kill_service_soon(self, a: int, b: int, c: int) -> None:
        """In the middle of what it carries out next."""
        self.tiers.steps_to_live = a % 9

    def of_the_service(self, a: int, b: int, c: int) -> None:
        """Something that the service does with blocks besides what sequences ask for."""
        tiers, hashes = self.tiers, [chained(c % 7, depth) for depth in range(1 + b % 6)]
        does: tuple[Callable[[], None], ...] = (
            lambda: tiers.end_write(b, c),
            lambda: tiers.end_read(b, c),
            lambda: tiers.fetch(hashes),
            lambda: tiers.end_fetch(b),
            lambda: tiers.begin_fill(hashes[-1]),
            lambda: tiers.end_fill(b, c),
            lambda: tiers.hold(hashes[-1]),
            lambda: tiers.let_go(b),
            lambda: tiers.pin(hashes, self.now_s + c),
            lambda: tiers.expire_pins(self.now_s),
            tiers.free_ahead,
            lambda: tiers.flip(b),
        )
        does[a % len(does)]()

    def rarely_of_the_service(self, a: int, b: int, c: int) -> None:
        (self.tiers.flush if a % 3 else self.tiers.switch_disk_off)()

    def do(self, name: str, a: int, b: int, c: int) -> None:
        """One thing that happens, by the name of its method; the service may be killed in it."""
        try:
            getattr(self, name)(a, b, c)
        except ServiceKilledError:
            self.kill_service(a, b, c)

    def scribble(self, a: int, b: int, c: int) -> None:
        for worker in self.workers:
            for block in worker.writable():
                self.tiers.blocks[Tier.DEVICE][block] = GARBAGE

    def repeat(self, a: int, b: int, c: int) -> None:
        """A message arrives that was sent long ago, or again."""
        if self.messages:
            worker, deliver = self.messages[-1 - (a + 7 * b) % len(self.messages)]
            self.deliver(worker, deliver)

    # How it happens.

    def chosen(self, a: int, b: int) -> tuple[Worker, str, Held] | None:
        """One sequence that a running worker believes it holds, if there is any."""
        held = [(worker, *item) for worker in self.workers if worker.speaks for item in worker.held.items()]
        return held[(a + b) % len(held)] if held else None

    def releasing(self, attachment_id: int, sequence_id: str, epoch: int) -> Callable[[], None]:
        def deliver() -> None:
            self.ledger.release(attachment_id, [(sequence_id, epoch)])

        return deliver

    def releasing_unheard(self, attachment_id: int, sequence_id: str, number: int) -> Callable[[], None]:
        def deliver() -> None:
            self.ledger.release_unheard(attachment_id, [(sequence_id, number)])

        return deliver

    def send(self, worker: Worker, deliver: Callable[[], Grant | None], is_lost: bool) -> Grant | None:
        if not worker.speaks:
            return None
        self.messages.append((worker, deliver))
        return None if is_lost else self.deliver(worker, deliver)

    def deliver(self, worker: Worker, deliver: Callable[[], Grant | None]) -> Grant | None:
        try:
            grant = deliver()
        except ForebayError:
            return None
        if grant is not None:
            self.carry_out(grant.effects)
        return grant

    def ask(self, worker: Worker, sequence_id: str, prompt: int, ledger_call: Callable[[], Grant], c: int) -> None:
        is_lost, is_late, is_unheard = c % 11 == 0, c % 11 in (1, 2), c % 11 in (0, 2)
        self.request_count += 1
        number = self.request_count

        def deliver() -> Grant:
            grant = ledger_call()
            self.check_grant(worker, sequence_id, prompt, grant)
            self.ledger.note_request(sequence_id, grant.epoch, number)
            return grant

        attachment_id, asked_s = worker.attachment_id, self.now_s
        grant = self.send(worker, deliver, is_lost)
        if grant is not None:
            answer = Answer(worker, attachment_id, asked_s, sequence_id, prompt, grant, number)
            if is_late:
                self.answers.append(answer)
            else:
                self.take_in(answer)
        if is_unheard and sequence_id not in worker.held:  # the worker waits no longer, and writes to no such sequence
            worker.given_up_requests.add(number)
            self.send(worker, self.releasing_unheard(attachment_id, sequence_id, number), is_lost=False)

    def take_in(self, answer: Answer) -> None:
        if answer.worker.take_in(answer, self.now_s, LEASE_S):
            self.manifests.append((answer.sequence_id, answer.grant.epoch, answer.prompt))

    def send_seal(self, worker: Worker, held: Held, entry: SealEntry, *, is_lost: bool) -> None:
        attachment_id = worker.attachment_id

        def deliver() -> None:
            sealed = self.ledger.seal(attachment_id, entry, self.now_s)
            self.carry_out(sealed.effects)
            held.acknowledged = max(held.acknowledged, entry.first_block_index + len(entry.block_hashes))
            if entry.hand_over:
                self.manifests.append((entry.sequence_id, sealed.epoch, held.prompt))

        self.send(worker, deliver, is_lost)

    def carry_out(self, effects: Effects) -> None:
        for copy in effects.copies:
            self.check_copy(copy)
        self.tiers.carry_out(effects)

    def expire(self) -> None:
        for revoked in self.ledger.expire(self.now_s).revoked:
            assert revoked.sequence_ids  # workers hear of it; these ones go on writing all the same

    # What must hold.

    def check_grant(self, worker: Worker, sequence_id: str, prompt: int, grant: Grant) -> None:
        owner = (sequence_id, worker.process)
        assert self.epoch_owner.get(grant.epoch, owner) == owner
        assert grant.epoch in self.epoch_owner or grant.epoch > max(self.epoch_owner, default=0)
        self.epoch_owner[grant.epoch] = owner
        assert len(set(grant.block_ids)) == len(grant.block_ids)
        for other in self.workers:
            for other_id, held in other.held.items() if other.is_alive else ():
                if (other, other_id) != (worker, sequence_id):
                    assert not set(held.block_ids[held.stopped_before :]) & set(grant.block_ids), "a second writer"
        self.check_prefix(prompt, grant)

    def check_prefix(self, prompt: int, grant: Grant) -> None:
        """As its bytes will be once the copies are done, which is before the worker hears of it."""
        blocks = {tier: content.copy() for tier, content in self.tiers.blocks.items()}
        for copy in grant.effects.copies if self.tiers.does_copy else ():
            blocks[copy.to_tier][copy.to_index] = blocks[copy.from_tier][copy.from_index]
        for depth, block in enumerate(grant.block_ids[: grant.cached_block_count]):
            assert blocks[Tier.DEVICE][block] == chained(prompt, depth), "a cached block holds something else"

    def check_copy(self, copy: CopyBlock) -> None:
        for worker in self.workers:
            for tier, block in ((copy.from_tier, copy.from_index), (copy.to_tier, copy.to_index)):
                assert tier is Tier.HOST or block not in worker.writable(), "a writer meets a copy"

    def check(self) -> None:
        self.tiers.check()
        writable = [worker.writable() for worker in self.workers]
        by_service = self.tiers.written_by_service(Tier.DEVICE)
        assert sum(map(len, writable)) + len(by_service) == len(by_service.union(*writable)), "two writers"
        assert sum(map(len, writable)) + len(by_service) <= self.ledger.stats().tiers[0].leased
        for worker in self.workers:
            for held in worker.held.values() if worker.is_alive else ():
                if self.now_s < held.lease_until_s:
                    self.check_sealed(held)

    def check_sealed(self, held: Held) -> None:
        for depth, block in enumerate(held.block_ids[: held.acknowledged]):
            assert self.tiers.blocks[Tier.DEVICE][block] == chained(held.prompt, depth), (
                "a referenced block was evicted"
            )

    def end(self) -> None:
        """One worker dies, the others let go and say so only by their heartbeats; then nothing is leased or used."""
        self.tiers.steps_to_live = None
        self.workers[0].is_alive = False
        for worker in self.workers[1:]:
            worker.is_stopped = False
            for sequence_id in list(worker.held):
                worker.give_up(sequence_id)
        self.ledger.detach(self.workers[1].attachment_id, self.now_s, process_is_gone=not self.workers[1].is_alive)
        self.look_for_dead(0, 0, 0)
        self.now_s += LEASE_S
        self.expire()
        for number in (1, 2):
            self.attach(number, 0, 0)
            for _ in range(2):
                self.renew(number, 2, 0)
        self.tiers.end()
        self.check()
        stats = self.ledger.stats()
        assert stats.sequences == 0, "a leak"
        self.count_up()
        assert all((one.leased, one.referenced) == (0, 0) for one in stats.tiers), "a leak"
