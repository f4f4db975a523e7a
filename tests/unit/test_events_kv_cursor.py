"""The gap logic: whatever is lost, doubled or reordered, a reader ends up with the node's index."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.events.kv_cursor import MAX_HELD_BATCHES, Apply, Batch, KvCursor, RequestDump

Change = tuple[str, int]  # ("+" | "-", block)


class Node:
    """The truth: an index, its numbered changes, and restarts that begin them anew."""

    def __init__(self) -> None:
        self.incarnation = 1
        self.blocks: set[int] = set()
        self.next_number = 1

    def change(self, changes: Sequence[Change]) -> Batch[Change]:
        apply(self.blocks, changes)
        batch = Batch(self.incarnation, self.next_number, tuple(changes))
        self.next_number += len(changes)
        return batch

    def heartbeat(self) -> Batch[Change]:
        return Batch(self.incarnation, self.next_number)

    def restart(self) -> None:
        self.incarnation += 1
        self.blocks, self.next_number = set(), 1


class Reader:
    """A cursor with its copy of the index, and the dump it waits for, taken when it was asked for."""

    def __init__(self) -> None:
        self.cursor: KvCursor[Change] = KvCursor()
        self.blocks: set[int] = set()
        self.pending_dump: tuple[int, int, frozenset[int]] | None = None
        self.dump_count = 0

    def act(self, effect: Apply[Change] | RequestDump | None, node: Node) -> None:
        if isinstance(effect, Apply):
            apply(self.blocks, effect.events)
        elif isinstance(effect, RequestDump):
            assert self.pending_dump is None, "one dump at a time"
            self.dump_count += 1
            self.pending_dump = (node.incarnation, node.next_number - 1, frozenset(node.blocks))

    def finish_dump(self, node: Node) -> None:
        if self.pending_dump is None:
            return
        (incarnation, last_number, blocks), self.pending_dump = self.pending_dump, None
        self.blocks = set(blocks)
        for effect in self.cursor.on_dump(incarnation, last_number):
            self.act(effect, node)


def apply(blocks: set[int], changes: Sequence[Change]) -> None:
    for sign, block in changes:
        if sign == "+":
            blocks.add(block)
        else:
            blocks.discard(block)


changes = st.lists(st.tuples(st.sampled_from("+-"), st.integers(0, 5)), min_size=1, max_size=3)
actions = st.one_of(
    st.tuples(st.just("change"), changes),
    st.tuples(st.just("restart"), st.none()),
    st.tuples(st.just("heartbeat"), st.none()),
    st.tuples(st.just("deliver"), st.integers(0, 30)),  # any batch ever sent, so late ones and doubles too
    st.tuples(st.just("deliver in order"), st.none()),
    st.tuples(st.just("dump arrives"), st.none()),
    st.tuples(st.just("suspicion"), st.none()),
)


@settings(max_examples=1_000, deadline=None)
@given(st.lists(actions, max_size=40))
def test_after_quiescence_and_a_heartbeat_the_copy_equals_the_index(script: list) -> None:  # type: ignore[type-arg]
    node, reader = Node(), Reader()
    sent: list[Batch[Change]] = []
    unheard = 0
    for name, argument in script:
        match name:
            case "change":
                sent.append(node.change(argument))
            case "restart":
                node.restart()
            case "heartbeat":
                sent.append(node.heartbeat())
            case "deliver" if sent:
                reader.act(reader.cursor.on_batch(sent[argument % len(sent)]), node)
            case "deliver in order" if unheard < len(sent):
                reader.act(reader.cursor.on_batch(sent[unheard]), node)
                unheard += 1
            case "dump arrives":
                reader.finish_dump(node)
            case "suspicion":
                reader.act(reader.cursor.on_suspicion(), node)
    for _ in range(2):  # a dump under way may be older than the heartbeat, and is then asked for again
        reader.act(reader.cursor.on_batch(node.heartbeat()), node)
        reader.finish_dump(node)
        reader.finish_dump(node)
    assert reader.cursor.is_following
    assert reader.blocks == node.blocks


@given(st.lists(changes, max_size=20))
def test_in_order_without_loss_one_dump_is_enough(batches: list[list[Change]]) -> None:
    node, reader = Node(), Reader()
    reader.act(reader.cursor.on_suspicion(), node)
    reader.finish_dump(node)
    for batch in batches:
        reader.act(reader.cursor.on_batch(node.change(batch)), node)
        reader.act(reader.cursor.on_batch(node.heartbeat()), node)
        assert reader.blocks == node.blocks
    assert reader.dump_count == 1


@given(st.lists(changes, min_size=2, max_size=12), st.data())
def test_batches_held_during_a_dump_are_not_lost(batches: list[list[Change]], data: st.DataObject) -> None:
    node, reader = Node(), Reader()
    sent = [node.change(batch) for batch in batches]
    taken = data.draw(st.integers(0, len(sent)))
    truth: set[int] = set()
    for batch in sent[:taken]:
        apply(truth, batch.events)
    reader.act(reader.cursor.on_suspicion(), node)
    reader.pending_dump = (1, sum(len(batch.events) for batch in sent[:taken]), frozenset(truth))
    for batch in data.draw(st.permutations(sent)):
        reader.act(reader.cursor.on_batch(batch), node)
    reader.finish_dump(node)
    assert reader.blocks == node.blocks
    assert reader.dump_count == 1


def test_a_batch_that_overlaps_what_is_known_gives_only_its_rest() -> None:
    cursor: KvCursor[str] = KvCursor()
    cursor.on_suspicion()
    cursor.on_dump(1, 4)
    assert cursor.on_batch(Batch(1, 3, "cdef")) == Apply("ef")
    assert cursor.on_batch(Batch(1, 3, "cdef")) is None
    assert cursor.on_batch(Batch(1, 8, "h")) == RequestDump()
    assert not cursor.is_following


def test_what_is_held_is_bounded() -> None:
    cursor: KvCursor[str] = KvCursor()
    assert cursor.on_batch(Batch(1, 1, "a")) == RequestDump()
    for number in range(2, 3 * MAX_HELD_BATCHES):
        assert cursor.on_batch(Batch(1, number, "x")) is None
    assert len(cursor._held) <= MAX_HELD_BATCHES
    effects = cursor.on_dump(1, 0)
    assert effects[0] == RequestDump(), "the hole shows"
