"""When reports of steps are told: at once what somebody waits for, later tokens together, nothing lost or reordered."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.engine.scheduler import BlocksFilled, Failed, Finished, FinishReason, NeedsBlocks, NewToken, Outcome
from forebay.errors import ForebayError
from forebay.worker.step_report import Report, ReportGathering, Share, Telling

GATHER_S = 1.0


def step(ended_s: float, *outcomes: Outcome, removed: tuple[str, ...] = ()) -> Report:
    return Report(outcomes, removed, (Share("a", 0, 1),), frozenset(), ended_s - 0.1, ended_s)


def idle(ended_s: float) -> Report:
    return Report((), (), (), frozenset(), ended_s, ended_s)


def token(name: str) -> NewToken:
    return NewToken(name, 7, None)


@pytest.fixture
def gathering() -> ReportGathering:
    """Has told the first token of "a" at 0 s."""
    gathering = ReportGathering(GATHER_S)
    assert gathering.add(step(0.0, token("a")))
    return gathering


def test_later_tokens_wait_and_are_told_together(gathering: ReportGathering) -> None:
    reports = [step(0.1 * number, token("a")) for number in range(1, 11)]

    assert [gathering.add(report) for report in reports] == [None] * 9 + [Telling(reports, is_due=True)]


@pytest.mark.parametrize(
    "urgent",
    [
        step(0.2, token("a"), token("b")),
        step(0.2, token("a"), Finished("a", FinishReason.STOP)),
        step(0.2, Failed("a", ForebayError("broken"))),
        step(0.2, token("a"), NeedsBlocks("a", 1)),
        step(0.2, token("a"), removed=("c",)),
        idle(0.2),
    ],
)
def test_what_somebody_waits_for_is_told_at_once_with_all_that_came_before(
    gathering: ReportGathering, urgent: Report
) -> None:
    waiting = step(0.1, token("a"), BlocksFilled("a", 0, 1))
    assert not gathering.add(waiting)

    telling = gathering.add(urgent)

    assert telling is not None
    assert telling.reports[0] == waiting


def test_many_sequences_are_gathered_for_longer(gathering: ReportGathering) -> None:
    def wide_step(ended_s: float, width: int) -> Report:
        shares = tuple(Share(f"s{number}", 0, 1) for number in range(width))
        return Report((token("a"),), (), shares, frozenset(), ended_s - 0.1, ended_s)

    assert gathering.add(wide_step(1.4 * GATHER_S, width=9)) is None
    assert gathering.add(wide_step(1.5 * GATHER_S, width=9)) is not None
    assert gathering.add(wide_step(3.4 * GATHER_S, width=1000)) is None
    assert gathering.add(wide_step(3.5 * GATHER_S, width=1000)) is not None


def test_what_is_urgent_does_not_put_off_what_is_due(gathering: ReportGathering) -> None:
    urgent, later = step(0.5, token("a"), token("b")), step(GATHER_S, token("a"), token("b"))

    assert gathering.add(urgent) == Telling([urgent], is_due=False)
    assert gathering.add(later) == Telling([later], is_due=True)


def test_when_no_step_follows_all_is_due(gathering: ReportGathering) -> None:
    waiting = step(0.1, token("a"))
    assert gathering.add(waiting) is None

    assert gathering.add(idle(0.2)) == Telling([waiting], is_due=True)


def test_an_id_used_again_has_a_first_token_again(gathering: ReportGathering) -> None:
    gathering.add(step(0.1, Finished("a", FinishReason.LENGTH)))

    assert gathering.add(step(0.2, token("a")))


def test_without_news_nothing_is_told(gathering: ReportGathering) -> None:
    assert gathering.add(idle(5.0)) is None
    assert gathering.rest().reports == []


OUTCOMES = st.one_of(
    st.sampled_from("abc").map(token),
    st.sampled_from("abc").map(lambda name: Finished(name, FinishReason.STOP)),
    st.just(BlocksFilled("a", 0, 1)),
)


@given(st.lists(st.lists(OUTCOMES, max_size=3), max_size=30), st.floats(0.01, 2))
def test_every_report_is_told_once_in_order_and_not_late(steps: list[list[Outcome]], step_s: float) -> None:
    gathering = ReportGathering(GATHER_S)
    reports = [step(number * step_s, *outcomes) for number, outcomes in enumerate(steps, 1)]
    told: list[Report] = []
    for report in reports:
        telling = gathering.add(report)
        told += telling.reports if telling else []
        assert all(report.ended_s - one.ended_s < GATHER_S for one in reports[len(told) : reports.index(report) + 1])
    told += gathering.rest().reports

    assert told == reports
