"""What of a mesh is replaced while it serves, in which order, and what is not."""

from pathlib import Path

import pytest

from forebay.errors import StartError
from forebay.mesh.rolling import Manner, as_role, check_switch, free_address, free_name, plan_rolling
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


def test_what_has_no_process_stays_and_serves_nobody_meanwhile() -> None:
    plan = plan_rolling(LARGE, [], gone={"decode-0", "router-0"})
    names = [name for name, _ in plan.steps]
    assert {"decode-0", "router-0", "router-1"}.isdisjoint(names)
    assert "decode-1" in names
    reasons = dict(plan.stays)
    assert "`forebay up` starts it again" in reasons["decode-0"]
    assert "the only router" in reasons["router-1"], "nobody would serve in its place"
    with pytest.raises(StartError, match="decode-0"):
        plan_rolling(LARGE, ["decode-0"], gone={"decode-0"})


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


@pytest.mark.parametrize(
    ("name", "role", "words"),
    [
        ("decode-7", "prefill", "no service 'decode-7'"),
        ("router-0", "decode", "only prefill and decode workers"),
        ("decode-0", "router", "only prefill and decode workers"),
        ("decode-0", "decode", "a decode worker already"),
        ("prefill-0", "decode", "the last prefill worker"),
    ],
)
def test_a_switch_that_cannot_be_says_why(name: str, role: str, words: str) -> None:
    with pytest.raises(StartError, match=words):
        check_switch(LARGE, name, role)


def test_a_worker_of_which_there_are_two_can_have_the_other_role() -> None:
    check_switch(LARGE, "decode-1", "prefill")
    spec = MeshSpec(Path("m.gguf"), Path("state"), prefill_count=2, decode_count=2, chip_class="cpu-f32", threads=1)
    by_name = {one.name: one for one in spec.services()}
    assert as_role(by_name["decode-1"].at(by_name["prefill-1"].address).command, "prefill") == (
        by_name["prefill-1"].command
    )


def test_a_worker_that_got_its_role_later_is_known_to_the_mesh() -> None:
    spec = MeshSpec(Path("m.gguf"), Path("state"))
    later = spec.service("decode-3")
    assert later is not None
    assert (later.role, later.address) == ("decode", "127.0.0.1:7423")
    assert spec.service("decode-0") == next(one for one in spec.services() if one.name == "decode-0")
    assert spec.service("decode-0-next") is spec.service("decode-10") is spec.service("router-3") is None


def test_names_of_further_workers_are_the_first_that_are_free() -> None:
    assert free_name("decode", {"decode-0", "decode-2", "prefill-1"}) == "decode-1"
    with pytest.raises(StartError, match="at most 10"):
        free_name("decode", {f"decode-{index}" for index in range(10)})
