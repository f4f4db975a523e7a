"""When nobody gets on for want of blocks, the last gives way, and so the first always gets on."""

from hypothesis import given
from hypothesis import strategies as st

from forebay.engine.rank import Rank, rank_of
from forebay.worker.standstill import Standstill

INSIDE = {rank_of(1, 1): "batch", rank_of(2, 0): "first", rank_of(3, 0): "second", rank_of(4, 1): "late batch"}


def everybody(_rank: Rank) -> bool:
    return True


def stuck_since_0(*sequence_ids: str) -> Standstill:
    standstill = Standstill(patience_s=1.0)
    standstill.note(frozenset(sequence_ids), 0.0)
    return standstill


def test_the_least_urgent_and_latest_gives_way_one_at_a_time() -> None:
    standstill, inside = stuck_since_0(*INSIDE.values()), dict(INSIDE)
    order = []
    for now_s in (0.9, 1.0, 1.9, 2.0, 3.0, 4.0):
        last = standstill.who_gives_way(inside, everybody, now_s)
        order.append(last)
        inside = {rank: one for rank, one in inside.items() if one != last}
    assert order == [None, "late batch", None, "batch", "second", "first"]
    assert standstill.who_gives_way({}, everybody, 9.0) is None


def test_nobody_gives_way_while_one_gets_on_or_may_still_be_given_blocks() -> None:
    assert stuck_since_0("first").who_gives_way(INSIDE, everybody, 5.0) is None
    standstill = stuck_since_0(*INSIDE.values())
    assert standstill.who_gives_way(INSIDE, lambda rank: rank.arrival != 2, 5.0) is None
    standstill.note(frozenset(), 5.0)
    assert standstill.who_gives_way(INSIDE, everybody, 9.0) is None
    standstill.note(frozenset(INSIDE.values()), 9.0)
    assert standstill.who_gives_way(INSIDE, everybody, 9.5) is None, "only a lasting standstill counts"


@given(
    needs=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 2)), min_size=1, max_size=8),
    capacity=st.integers(1, 12),
)
def test_the_first_of_those_that_fit_always_ends(needs: list[tuple[int, int]], capacity: int) -> None:
    """Sequences that take a block each turn and give all back at their end, first come by rank."""
    blocks = {rank_of(arrival, priority): 0 for arrival, (_, priority) in enumerate(needs)}
    total = {rank: needs[rank.arrival][0] for rank in blocks}
    standstill, ended, now_s = Standstill(1.0), set(), 0.0
    first_that_fits = min((rank for rank in blocks if total[rank] <= capacity), default=None)
    while blocks:
        now_s += 1.0
        free = capacity - sum(blocks.values())
        going = sorted(blocks)[:free]
        standstill.note(frozenset() if going else frozenset(str(rank) for rank in blocks), now_s)
        for rank in going:
            blocks[rank] += 1
            if blocks[rank] == total[rank]:
                del blocks[rank]
                ended.add(rank)
        if not going:
            last = standstill.who_gives_way({rank: str(rank) for rank in blocks}, everybody, now_s + 1.0)
            assert last is not None
            blocks = {rank: held for rank, held in blocks.items() if str(rank) != last}
    bigger_before = first_that_fits is not None and any(rank < first_that_fits for rank in total)
    assert first_that_fits is None or bigger_before or first_that_fits in ended
