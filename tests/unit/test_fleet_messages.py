"""Members, loads and layouts survive the wire, and nonsense is refused by field."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.errors import InvalidFieldError
from forebay.fleet.member import Load, Member
from forebay.fleet.messages import load_from_proto, load_to_proto, member_from_proto, member_to_proto
from forebay.kv.layout import AxisOrder, KvDtype, KvLayout
from forebay.role import Role
from forebay.routing.cost import ChipRates, ModelSize
from forebay.v1 import common_pb2, events_pb2
from forebay.wire.layout import layout_from_proto, layout_to_proto

sizes = st.integers(1, 64)
layouts = st.builds(
    KvLayout,
    dtype=st.sampled_from(KvDtype),
    layers=sizes,
    kv_heads=sizes,
    head_dim=sizes,
    block_tokens=sizes,
    order=st.sampled_from(AxisOrder),
    first_kv_head=st.integers(0, 100),
)
names = st.text(min_size=1, max_size=20)
members = st.builds(
    Member,
    worker_id=names,
    role=st.sampled_from(Role),
    address=names,
    node_id=names,
    model=st.text(max_size=5),
    model_digest=st.text(max_size=5),
    chip_class=st.text(max_size=5),
    layout=st.none() | layouts,
    is_draining=st.booleans(),
    max_sequences=st.integers(0, 2**32 - 1),
    version=st.text(max_size=5),
    incarnation=st.integers(0, 2**64 - 1),
    model_size=st.none() | st.builds(ModelSize, *[sizes] * 5),
    rates=st.none() | st.builds(ChipRates, *[st.floats(1e-6, 1e15)] * 5),
)


@given(members)
def test_a_member_survives(member: Member) -> None:
    message = events_pb2.FleetMember.FromString(member_to_proto(member).SerializeToString())
    assert member_from_proto(message) == member


@given(st.builds(Load, *[st.integers(0, 2**32 - 1)] * 4))
def test_a_load_survives(load: Load) -> None:
    assert load_from_proto(load_to_proto("w", load)) == load
    assert load_to_proto("w", load).worker_id == "w"


@given(layouts)
def test_unsharded_layouts_are_equal_however_they_are_written(layout: KvLayout) -> None:
    message = layout_to_proto(layout)
    assert message.total_kv_heads == layout.kv_heads
    message.total_kv_heads = 0
    assert layout_from_proto(message) == layout


def test_a_shard_is_not_the_whole() -> None:
    whole = KvLayout(KvDtype.BFLOAT16, layers=2, kv_heads=4, head_dim=8)
    shard = KvLayout(KvDtype.BFLOAT16, layers=2, kv_heads=4, head_dim=8, total_kv_heads=8)
    assert layout_from_proto(layout_to_proto(shard)) == shard != whole


@pytest.mark.parametrize("field", ["block_tokens", "layers", "kv_heads", "head_dim"])
def test_a_layout_of_absurd_blocks_is_refused_at_once(field: str) -> None:
    message = layout_to_proto(KvLayout(KvDtype.INT8, layers=2, kv_heads=4, head_dim=8))
    setattr(message, field, 2**32 - 1)
    message.total_kv_heads, message.ranks = 0, message.kv_heads
    with pytest.raises(InvalidFieldError) as caught:
        layout_from_proto(message)
    assert caught.value.field == "layout.block_tokens"


@pytest.mark.parametrize("field", ["dtype", "order", "block_tokens", "layers", "kv_heads", "head_dim"])
def test_a_layout_without_a_field_is_refused(field: str) -> None:
    message = layout_to_proto(KvLayout(KvDtype.INT8, layers=2, kv_heads=4, head_dim=8))
    message.ClearField(field)  # type: ignore[arg-type]
    with pytest.raises(InvalidFieldError) as caught:
        layout_from_proto(message)
    assert caught.value.field == f"layout.{field}"


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (events_pb2.FleetMember(address="a", role=common_pb2.SERVICE_ROLE_DECODE), "worker_id"),
        (events_pb2.FleetMember(worker_id="w", role=common_pb2.SERVICE_ROLE_DECODE), "worker_id"),
        (events_pb2.FleetMember(worker_id="w", address="a"), "role"),
        (
            events_pb2.FleetMember(
                worker_id="w",
                address="a",
                role=common_pb2.SERVICE_ROLE_DECODE,
                rates=events_pb2.ChipRates(flops_per_s=float("nan"), bytes_per_s=1.0),
            ),
            "flops_per_s",
        ),
        (
            events_pb2.FleetMember(
                worker_id="w",
                address="a",
                role=common_pb2.SERVICE_ROLE_DECODE,
                model_size=events_pb2.ModelSize(parameters=1),
            ),
            "weight_bytes",
        ),
    ],
)
def test_a_member_without_a_field_is_refused(message: events_pb2.FleetMember, field: str) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        member_from_proto(message)
    assert caught.value.field == field


def test_keys_tell_roles_apart() -> None:
    keys = {Member("w", role, "a", "n").key for role in Role}
    assert len(keys) == len(Role)
    assert "decode.w" in keys
