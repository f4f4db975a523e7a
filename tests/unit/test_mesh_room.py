"""KV memory that cannot be had is refused before anything is started."""

import dataclasses
from pathlib import Path

import pytest

from forebay.errors import StartError
from forebay.mesh.room import check_block_room, check_room
from forebay.mesh.spec import MeshSpec

SPEC = MeshSpec(model_path=Path("/m.gguf"), state_dir=Path("/state"))
BLOCK_BYTES = 1000


@pytest.mark.parametrize(("device_bytes", "host_bytes"), [(None, None), (1000, None), (1000, 1000), (None, 0)])
def test_room_for_a_block_is_enough(device_bytes: int | None, host_bytes: int | None) -> None:
    spec = dataclasses.replace(SPEC, device_bytes=device_bytes, host_bytes=host_bytes)
    check_block_room(spec, BLOCK_BYTES)
    check_room(spec)


@pytest.mark.parametrize(("field", "flag"), [("device_bytes", "--device-bytes"), ("host_bytes", "--host-bytes")])
def test_less_than_a_block_is_refused_by_flag(field: str, flag: str) -> None:
    with pytest.raises(StartError, match=rf"^{flag} 999 has no room for one KV block of this model \(1000 bytes\)"):
        check_block_room(dataclasses.replace(SPEC, **{field: 999}), BLOCK_BYTES)  # type: ignore[arg-type]


@pytest.mark.parametrize("sizes", [{"device_bytes": 1 << 60}, {"host_bytes": 1 << 60}])
def test_more_than_the_machine_has_is_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(StartError, match=rf"bytes free, {1 << 60} are wanted; .*--device-bytes"):
        check_room(dataclasses.replace(SPEC, **sizes))  # type: ignore[arg-type]
