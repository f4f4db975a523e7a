"""Pulls that share a way out get equal bytes, whoever came first and whoever asks for more."""

from hypothesis import given
from hypothesis import strategies as st

from forebay.kv.pull_turns import PullTurns

PIECE_BYTES = 100


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(1, PIECE_BYTES)), max_size=200))
def test_of_two_that_wait_neither_runs_ahead(steps: list[tuple[int, int, int]]) -> None:
    turns: PullTurns[int] = PullTurns()
    waiting: dict[int, int] = {}  # since when each waits without a pause, in bytes of its own
    since: dict[tuple[int, int], tuple[int, int]] = {}
    for pull, action, piece_bytes in steps:
        if action < 3:
            turns.wait(pull)
            if pull not in waiting:
                waiting[pull] = 0
                since |= {(pull, other): (0, waiting[other]) for other in waiting if other != pull}
        elif action < 4:
            turns.leave(pull)
            waiting.pop(pull, None)
            since = {pair: value for pair, value in since.items() if pull not in pair}
        elif (chosen := turns.next()) is not None:
            turns.sent(chosen, piece_bytes)
            waiting[chosen] += piece_bytes
        assert (turns.next() is None) == (not waiting)
        for (one, other), (one_began, other_began) in since.items():
            gap = (waiting[one] - one_began) - (waiting[other] - other_began)
            assert abs(gap) <= 2 * PIECE_BYTES


def test_a_late_small_pull_does_not_wait_for_a_large_one() -> None:
    turns: PullTurns[str] = PullTurns()
    turns.wait("large")
    for _ in range(1000):
        turns.sent("large", PIECE_BYTES)
    turns.wait("small")
    order = []
    for _ in range(6):
        chosen = turns.next()
        assert chosen is not None
        turns.sent(chosen, PIECE_BYTES)
        order.append(chosen)
    assert order.count("small") == 3
