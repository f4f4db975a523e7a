"""A node's cores are divided by urgency: nobody goes without, equals have the same, the sum fits."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.worker.core_division import divide_cores

Priorities = st.lists(st.integers(0, 4), min_size=1, max_size=64).map(tuple)


@pytest.mark.parametrize(
    ("core_count", "priorities", "cores"),
    [
        (8, (0,), (8,)),
        (8, (2,), (8,)),
        (2, (0, 1), (1, 1)),
        (8, (0, 0), (4, 4)),
        (8, (0, 1), (6, 2)),
        (8, (2, 0), (1, 7)),
        (3, (1, 0), (1, 2)),
        (3, (0, 0), (1, 1)),
        (16, (0, 1, 2), (10, 4, 2)),
        (2, (0, 0, 1, 2), (1, 1, 1, 1)),
    ],
)
def test_cores_follow_urgency(core_count: int, priorities: tuple[int, ...], cores: tuple[int, ...]) -> None:
    assert divide_cores(core_count, priorities) == cores


@given(core_count=st.integers(1, 256), priorities=Priorities)
def test_nobody_goes_without_and_the_sum_fits(core_count: int, priorities: tuple[int, ...]) -> None:
    cores = divide_cores(core_count, priorities)
    assert len(cores) == len(priorities)
    assert min(cores) >= 1
    assert sum(cores) <= max(core_count, len(priorities))


@given(core_count=st.integers(1, 256), priorities=Priorities)
def test_the_more_urgent_has_never_less_and_equals_have_the_same(core_count: int, priorities: tuple[int, ...]) -> None:
    by_priority = sorted(zip(priorities, divide_cores(core_count, priorities), strict=True))
    for (priority, cores), (less_urgent, fewer_cores) in pairwise(by_priority):
        assert cores >= fewer_cores if priority < less_urgent else cores == fewer_cores


@given(core_count=st.integers(1, 256), priorities=Priorities, data=st.data())
def test_the_order_of_the_slots_does_not_matter(
    core_count: int, priorities: tuple[int, ...], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(priorities))))
    cores = divide_cores(core_count, priorities)
    reordered = divide_cores(core_count, tuple(priorities[place] for place in order))
    assert reordered == tuple(cores[place] for place in order)


@given(core_count=st.integers(1, 256), worker_count=st.integers(1, 64), priority=st.integers(0, 2))
def test_equals_leave_no_more_idle_than_cannot_be_divided(core_count: int, worker_count: int, priority: int) -> None:
    assert set(divide_cores(core_count, (priority,) * worker_count)) == {max(1, core_count // worker_count)}
