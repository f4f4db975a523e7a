"""The packed weights' file: whole or made again, never half believed."""

import logging
import struct

import numpy as np
import pytest

from forebay.errors import StartError
from forebay.kernels.cpu.packed_file import PackedFileError, PackedSpec, map_packed_file, write_packed_file
from forebay.kernels.cpu.packed_model import PACKING_VERSION, WeightPolicy, load_packed_model
from forebay.models.default_model import resolve_model
from forebay.models.model_file import open_model
from forebay.testing.tiny_models import write_tiny_model

SPECS = [PackedSpec("matrix", 96, tile_format=3, output_count=16, input_count=32), PackedSpec("vector", 12)]


def content_of(spec):
    return np.full(spec.size_bytes, len(spec.name), np.uint8)


@pytest.fixture
def path(tmp_path):
    write_packed_file(tmp_path / "some.packed", 7, {"model_digest": "abc"}, SPECS, content_of)
    return tmp_path / "some.packed"


def test_what_was_written_is_mapped_on_cache_lines(path):
    packed = map_packed_file(path, 7)

    assert packed.properties == {"model_digest": "abc"}
    assert [packed.tensors[spec.name].spec for spec in SPECS] == SPECS
    for spec in SPECS:
        assert packed.read(spec.name).tolist() == content_of(spec).tolist()
        assert packed.address(spec.name) % 64 == 0
        assert not packed.read(spec.name).flags.writeable


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda whole: whole[:-1], "bytes instead of"),
        (lambda whole: whole + b"\0", "bytes instead of"),
        (lambda whole: whole[:5], "cut short"),
        (lambda whole: whole[:40], "cut short"),
        (lambda whole: b"GGUF" + whole[4:], "not a file of packed weights"),
        (lambda whole: whole[:8] + struct.pack("<I", 6) + whole[12:], "version 6, not 7"),
        (lambda whole: whole[:20] + b"!" + whole[21:], "makes no sense"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(path, change, reason):
    path.write_bytes(change(path.read_bytes()))

    with pytest.raises(PackedFileError, match=reason):
        map_packed_file(path, 7)


def test_a_failure_half_way_leaves_nothing(tmp_path):
    def fail_at_the_second(spec):
        if spec.name == "vector":
            raise KeyError(spec.name)
        return content_of(spec)

    with pytest.raises(KeyError):
        write_packed_file(tmp_path / "some.packed", 7, {}, SPECS, fail_at_the_second)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def tiny(tmp_path):
    return open_model(write_tiny_model(tmp_path / "model"))


@pytest.mark.parametrize(
    "damage", [lambda whole: whole[:-100], lambda whole: whole[:8] + struct.pack("<I", 999) + whole[12:]]
)
def test_damaged_weights_are_packed_again_with_a_line(tiny, tmp_path, caplog, damage):
    load_packed_model(tiny, WeightPolicy.BFLOAT16, tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("*.packed")
    whole = path.read_bytes()
    path.write_bytes(damage(whole))

    with caplog.at_level(logging.WARNING):
        load_packed_model(tiny, WeightPolicy.BFLOAT16, tmp_path / "cache")

    assert path.read_bytes() == whole
    assert [record.message for record in caplog.records if "packing them again" in record.message]


def test_weights_are_packed_once_and_progress_is_told(tiny, tmp_path):
    lines = []
    for _ in range(2):
        load_packed_model(tiny, WeightPolicy.INT8, tmp_path / "cache", lines.append)

    assert len(lines) == 1
    assert tiny.name in lines[0]


def test_a_nan_weight_is_refused_by_name(tmp_path):
    folder = write_tiny_model(tmp_path / "model")
    whole = bytearray((folder / "model.safetensors").read_bytes())
    whole[-4:] = struct.pack("<f", float("nan"))
    (folder / "model.safetensors").write_bytes(whole)

    with pytest.raises(StartError, match=r"tensor .* holds NaN"):
        load_packed_model(open_model(folder), WeightPolicy.BFLOAT16, tmp_path / "cache")


def test_a_folder_that_cannot_be_written_is_named(tiny, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")

    with pytest.raises(StartError, match="set FOREBAY_CACHE"):
        load_packed_model(tiny, WeightPolicy.BFLOAT16, tmp_path / "cache")


def test_the_default_models_weights_take_no_more_room_than_its_file():
    model = open_model(resolve_model(None))
    packed = load_packed_model(model, WeightPolicy.BFLOAT16, model.path.parent.parent / "weights")

    assert packed.size_bytes <= 1.05 * model.path.stat().st_size
    assert packed.properties == {"model_digest": model.digest}
    assert PACKING_VERSION > 0
