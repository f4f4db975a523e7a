"""Who can take over what a member leaves in its node's memory."""

import dataclasses

import pytest

from forebay.fleet.member import Member
from forebay.fleet.takers import can_take_over
from forebay.role import Role

LEAVING = Member("a", Role.DECODE, "h:1", "node", model_digest="d", is_draining=True)
OTHER = Member("b", Role.DECODE, "h:2", "node", model_digest="d")


def test_another_of_the_node_can() -> None:
    assert can_take_over([LEAVING, OTHER], LEAVING)


@pytest.mark.parametrize(
    "change",
    [
        {"worker_id": "a"},
        {"role": Role.PREFILL},
        {"node_id": "elsewhere"},
        {"model_digest": "another"},
        {"is_draining": True},
    ],
)
def test_nobody_else(change: dict[str, object]) -> None:
    assert not can_take_over([LEAVING, dataclasses.replace(OTHER, **change)], LEAVING)  # type: ignore[arg-type]
