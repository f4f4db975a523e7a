"""What of a mesh is replaced while it serves, in which order, and what is not."""

import pytest

from forebay.errors import StartError
from forebay.mesh.rolling import Manner, free_address, plan_rolling
from forebay.mesh.spec import MeshSpec

SMALL = [
    ("nats", "nats"),
    ("kvcache", "kvcache"),
    ("tokenizer", "tokenizer"),
    ("prefill-0", "prefill"),
    ("decode-0", "decode"),
    ("router", "router"),
]
LARGE = [*SMALL[:2], ("tokenizer-0", "tokenizer"), ("tokenizer-1", "tokenizer"), *SMALL[3:5]]
LARGE += [("decode-1", "decode"), ("router-0", "router"), ("router-1", "router")]


def test_all_that_can_is_replaced_and_the_rest_says_why_not() -> None:
    plan = plan_rolling(SMALL, [])
    assert plan.steps == (("prefill-0", Manner.OVERLAP), ("decode-0", Manner.OVERLAP))
    assert [name for name, _ in plan.stays] == ["nats", "kvcache", "tokenizer", "router"]
    assert "--routers 2" in dict(plan.stays)["router"]


def test_where_there_are_two_one_serves_while_the_other_is_replaced() -> None:
    steps = plan_rolling(LARGE, []).steps
    assert [name for name, manner in steps if manner is Manner.IN_PLACE] == [
        "tokenizer-0",
        "tokenizer-1",
        "router-0",
        "router-1",
    ]
    assert steps[0][0] == "prefill-0"


def test_names_and_roles_choose() -> None:
    assert [name for name, _ in plan_rolling(LARGE, ["router-1", "decode"]).steps] == [
        "decode-0",
        "decode-1",
        "router-1",
    ]


@pytest.mark.parametrize("name", ["kvcache", "nats", "router", "tokenizer"])
def test_what_cannot_roll_is_refused_where_it_is_named(name: str) -> None:
    with pytest.raises(StartError, match=f"{name} cannot be restarted while the mesh serves"):
        plan_rolling(SMALL, ["decode-0", name])


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(StartError, match="no service 'decode-9'"):
        plan_rolling(SMALL, ["decode-9"])


def test_a_replacement_goes_back_to_the_own_address_when_that_is_free() -> None:
    assert free_address("own", ["spare-0", "spare-1"], {"own", "spare-0"}) == "spare-1"
    assert free_address("own", ["spare-0"], {"spare-0"}) == "own"
    with pytest.raises(StartError):
        free_address("own", [], {"own"})


def test_a_service_elsewhere_is_the_same_but_for_its_address(tmp_path) -> None:  # type: ignore[no-untyped-def]
    spec = MeshSpec(tmp_path, tmp_path)
    decode = next(one for one in spec.services() if one.name == "decode-0")
    moved = decode.at("127.0.0.1:9")
    assert moved.command.count("127.0.0.1:9") == 1
    assert moved.at(decode.address) == decode
