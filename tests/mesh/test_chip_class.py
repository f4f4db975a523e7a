"""A mesh of another chip class than the default: KV-cache service and workers agree on its KV format."""

import pytest

from forebay.client import Client, ExecutionMode
from forebay.testing.mesh import running_mesh


@pytest.mark.parametrize("chip_class", ["cpu-f32", "cpu-f32-kv8"])
def test_a_mesh_in_full_precision_answers_in_both_modes(chip_class: str) -> None:
    with (
        running_mesh(chip_class=chip_class, device_bytes=64 << 20, host_bytes=0) as mesh,
        Client(mesh.router_address) as client,
    ):
        members = client.fleet().members
        split = client.generate("Water flows", mode="split", cache_salt="split", max_tokens=8, temperature=0)
        local = client.generate("Water flows", mode="local", cache_salt="local", max_tokens=8, temperature=0)
    assert {one.chip_class for one in members if one.role in {"prefill", "decode"}} == {chip_class}
    assert split.plan.mode is ExecutionMode.SPLIT
    assert split.token_ids == local.token_ids
    assert len(split.token_ids) == 8
