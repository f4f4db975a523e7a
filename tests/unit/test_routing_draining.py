"""Who may be drained: any interleaving of drains leaves a worker of each role that was not forced away."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.errors import LastWorkerError, NotDrainableError
from forebay.role import Role
from forebay.routing.draining import DrainCandidate, check_drain


def member(worker_id: str, role: Role = Role.DECODE, *, model: str = "m", is_leaving: bool = False) -> DrainCandidate:
    return DrainCandidate(worker_id, role, model, is_leaving)


def test_one_of_two_may_go() -> None:
    check_drain(member("a"), [member("a"), member("b")], is_forced=False)


@pytest.mark.parametrize(
    "others",
    [
        [],
        [member("b", is_leaving=True)],
        [member("b", model="another")],
        [member("b", Role.PREFILL)],
    ],
)
def test_the_last_stays_unless_forced(others: list[DrainCandidate]) -> None:
    with pytest.raises(LastWorkerError) as refused:
        check_drain(member("a"), [member("a"), *others], is_forced=False)
    assert refused.value.metadata["worker_id"] == "a"
    check_drain(member("a"), [member("a"), *others], is_forced=True)


def test_one_that_leaves_may_be_told_again() -> None:
    check_drain(member("a", is_leaving=True), [member("a", is_leaving=True)], is_forced=False)


@pytest.mark.parametrize("role", [Role.ROUTER, Role.TOKENIZER, Role.KVCACHE])
@pytest.mark.parametrize("is_forced", [True, False])
def test_what_is_no_worker_is_refused(role: Role, is_forced: bool) -> None:
    with pytest.raises(NotDrainableError, match=role.value):
        check_drain(member("a", role), [member("a", role), member("b", role)], is_forced=is_forced)


@given(
    st.lists(st.tuples(st.sampled_from([Role.PREFILL, Role.DECODE]), st.sampled_from("mn")), min_size=1, max_size=6),
    st.lists(st.integers(0, 5), max_size=20),
)
def test_without_force_every_kind_keeps_a_worker(kinds: list[tuple[Role, str]], drains: list[int]) -> None:
    members = {index: member(str(index), role, model=model) for index, (role, model) in enumerate(kinds)}
    for index in drains:
        if index not in members:
            continue
        one = members[index]
        try:
            check_drain(one, members.values(), is_forced=False)
        except LastWorkerError:
            assert not one.is_leaving
            continue
        members[index] = DrainCandidate(one.worker_id, one.role, one.model_digest, is_leaving=True)
    assert {(one.role, one.model_digest) for one in members.values() if not one.is_leaving} == set(kinds)
