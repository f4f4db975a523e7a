"""Who is next at the disk."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from forebay.kvcache.disk.turns import Turn, Turns


def taken(turns: Turns[Turn]) -> list[Turn]:
    """All that may start now, in order; none of them ends."""
    return list(iter(turns.next, None))


def test_a_flow_with_one_request_waits_for_one_of_each_other() -> None:
    turns: Turns[Turn] = Turns()
    for slot in range(10):
        turns.add(Turn(slot, "many"))
    turns.add(Turn(10, "few"))
    turns.add(Turn(11, "other"))
    turns.add(Turn(12, "few"))
    assert [turn.slot for turn in taken(turns)] == [0, 10, 11, 1, 12, 2, 3, 4, 5, 6, 7, 8, 9]


def test_requests_for_one_slot_go_in_order_and_one_at_a_time() -> None:
    turns: Turns[Turn] = Turns()
    first, second, third = Turn(1, "a"), Turn(1, "b"), Turn(1, "a")
    for turn in (first, second, third):
        turns.add(turn)
    assert taken(turns) == [first]
    assert not turns.withdraw(first), "it is under way"
    assert turns.withdraw(second)
    assert taken(turns) == []
    turns.end(first)
    assert taken(turns) == [third]


requests = st.tuples(st.just("add"), st.integers(0, 3), st.integers(0, 2))
steps = st.one_of(requests, st.tuples(st.sampled_from(["next", "end", "withdraw"]), st.integers(0, 9), st.just(0)))


@given(st.lists(steps, max_size=60))
def test_every_request_starts_once_unless_withdrawn_and_never_two_at_a_slot(steps: list[tuple[str, int, int]]) -> None:
    turns: Turns[Turn] = Turns()
    waiting: list[Turn] = []
    under_way: list[Turn] = []

    def start() -> None:
        turn = turns.next()
        free = [each for each in waiting if each.slot not in {one.slot for one in under_way}]
        assert (turn is None) == (not free), "who can start does"
        if turn is not None:
            assert turn is next(each for each in waiting if each.slot == turn.slot), "in order of arrival"
            waiting.remove(turn)
            under_way.append(turn)

    for name, number, flow in steps:
        if name == "add":
            waiting.append(Turn(number, flow))
            turns.add(waiting[-1])
        elif name == "next":
            start()
        elif name == "end" and under_way:
            turns.end(under_way.pop(number % len(under_way)))
        elif name == "withdraw" and (everyone := waiting + under_way):
            turn = everyone[number % len(everyone)]
            assert turns.withdraw(turn) == (turn in waiting)
            if turn in waiting:
                waiting.remove(turn)
    while waiting or under_way:
        if under_way:
            turns.end(under_way.pop())
        start()
    assert turns.next() is None


@given(st.lists(st.integers(0, 4), max_size=40))
def test_no_flow_gets_two_more_turns_than_another_that_waits(flows: list[int]) -> None:
    turns: Turns[Turn] = Turns()
    for slot, flow in enumerate(flows):
        turns.add(Turn(slot, flow))
    left, given_turns = Counter(flows), Counter[int]()
    for turn in taken(turns):
        given_turns[turn.flow] += 1  # type: ignore[index]
        left[turn.flow] -= 1  # type: ignore[index]
        hungry = [given_turns[flow] for flow in left if left[flow] > 0]
        assert not hungry or max(given_turns.values()) - min(hungry) <= 1
