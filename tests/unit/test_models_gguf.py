"""The GGUF container: what a sound file says, and that a broken one ends in one clear line."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.errors import StartError
from forebay.models.gguf import GgufFile
from forebay.models.gguf_types import GgufTensorType


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def key(name: str, kind: int, payload: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + payload


def tensor(name: str, sizes: tuple[int, ...], kind: int, offset_bytes: int) -> bytes:
    dimensions = struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
    return text(name) + dimensions + struct.pack("<IQ", kind, offset_bytes)


def container(keys: list[bytes], tensors: list[bytes], data: bytes = b"", version: int = 3) -> bytes:
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys)) + b"".join(keys) + b"".join(tensors)
    return header + b"\0" * (-len(header) % 32) + data


SOUND = container(
    [
        key("a.text", 8, text("grüß")),
        key("a.whole", 4, struct.pack("<I", 7)),
        key("a.big", 11, struct.pack("<q", -(2**40))),
        key("a.real", 6, struct.pack("<f", 0.5)),
        key("a.flag", 7, b"\1"),
        key("a.words", 9, struct.pack("<IQ", 8, 2) + text("x") + text("")),
        key("a.numbers", 9, struct.pack("<IQ3i", 5, 3, 1, -2, 3)),
    ],
    [tensor("m", (4, 2), 0, 0), tensor("v", (32,), 8, 32)],
    np.arange(8, dtype=np.float32).tobytes() + bytes(34),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def opened(path: Path, content: bytes) -> GgufFile:
    path.write_bytes(content)
    return GgufFile(path)


@pytest.mark.parametrize("version", [2, 3])
def test_reads_every_kind_of_metadata(path: Path, version: int) -> None:
    content = SOUND[:4] + struct.pack("<I", version) + SOUND[8:]

    metadata = opened(path, content).metadata

    assert metadata.values == {
        "a.text": "grüß",
        "a.whole": 7,
        "a.big": -(2**40),
        "a.real": 0.5,
        "a.flag": True,
        "a.words": ["x", ""],
        "a.numbers": [1, -2, 3],
    }


def test_reads_tensors_row_major_and_in_place(path: Path) -> None:
    file = opened(path, SOUND)

    assert file.tensors["m"].shape == (2, 4)
    assert file.tensors["v"].type is GgufTensorType.Q8_0
    assert file.tensors["v"].size_bytes == 34
    np.testing.assert_array_equal(file.read_packed("m").view(np.float32), np.arange(8))
    assert not file.read_packed("m").flags.writeable


def test_agrees_with_the_reference_writer(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("words", [f"word {number} ü" for number in range(1000)])
    writer.add_float64("real", 1e-300)
    writer.add_custom_alignment(64)
    expected = np.random.default_rng(1).standard_normal((3, 5)).astype(np.float32)
    writer.add_tensor("first", np.zeros(3, np.float32))
    writer.add_tensor("second", expected)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    file = GgufFile(path)

    assert file.metadata.get_list("words", str) == [f"word {number} ü" for number in range(1000)]
    assert file.metadata.get("real", float) == 1e-300
    np.testing.assert_array_equal(file.read_packed("second").view(np.float32).reshape(3, 5), expected)


BROKEN = {
    "empty": (b"", "not a GGUF file"),
    "magic": (b"GGML" + SOUND[4:], "not a GGUF file"),
    "version": (SOUND[:4] + struct.pack("<I", 1) + SOUND[8:], "GGUF version 1 is not supported"),
    "endian": (SOUND[:4] + struct.pack(">I", 3) + SOUND[8:], "big-endian GGUF is not supported"),
    "header only": (SOUND[:10], "truncated"),
    "in the metadata": (SOUND[:60], "truncated"),
    "in the data": (SOUND[:-1], "tensor v lies beyond the end"),
    "tensor count": (SOUND[:8] + struct.pack("<Q", 2**63) + SOUND[16:], "absurd header"),
    "key count": (SOUND[:16] + struct.pack("<Q", 2**40) + SOUND[24:], "absurd header"),
    "string length": (container([key("k", 8, struct.pack("<Q", 2**63))], []), "truncated"),
    "array length": (container([key("k", 9, struct.pack("<IQ", 4, 2**62))], []), "truncated"),
    "string array length": (container([key("k", 9, struct.pack("<IQ", 8, 2**62))], []), "truncated"),
    "value type": (container([key("k", 99, b"")], []), "metadata key k has the unknown type 99"),
    "array of arrays": (container([key("k", 9, struct.pack("<IQ", 9, 1))], []), "array of the unknown type 9"),
    "not UTF-8": (container([key("k", 8, struct.pack("<Q", 1) + b"\xff")], []), "not UTF-8"),
    "key twice": (container([key("k", 0, b"\1")] * 2, []), "metadata key k appears twice"),
    "tensor type": (container([], [tensor("t", (32,), 10, 0)], bytes(64)), "tensor t of ggml type 10"),
    "dimensions": (container([], [tensor("t", (1,) * 5, 0, 0)], bytes(64)), "tensor t has 5 dimensions"),
    "partial block": (container([], [tensor("t", (33,), 8, 0)], bytes(64)), "not whole Q8_0 blocks"),
    "misaligned": (container([], [tensor("t", (1,), 0, 4)], bytes(64)), "tensor t is not aligned"),
    "absurd shape": (container([], [tensor("t", (2**40, 2**40), 0, 0)], bytes(64)), "tensor t lies beyond the end"),
    "tensor twice": (container([], [tensor("t", (1,), 0, 0)] * 2, bytes(64)), "tensor t appears twice"),
    "split": (container([key("split.count", 2, b"\2\0")], []), "split over several files"),
}


@pytest.mark.parametrize(("content", "expected"), BROKEN.values(), ids=BROKEN.keys())
def test_refuses_a_broken_file_in_one_line(path: Path, content: bytes, expected: str) -> None:
    with pytest.raises(StartError) as refusal:
        opened(path, content)

    assert expected in refusal.value.message
    assert refusal.value.message.startswith(str(path))
    assert "\n" not in refusal.value.message


def test_refuses_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="cannot be read"):
        GgufFile(tmp_path)


@given(cut=st.integers(0, len(SOUND)), place=st.integers(0, len(SOUND) - 1), byte=st.integers(0, 255))
def test_any_damage_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, cut: int, place: int, byte: int
) -> None:
    content = bytearray(SOUND)
    content[place] = byte
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(content[:cut])

    try:
        file = GgufFile(path)
    except StartError:
        return

    for name in file.tensors:
        assert file.read_packed(name).size == file.tensors[name].size_bytes


@pytest.mark.parametrize(("name", "kind"), [("a.text", int), ("a.whole", str), ("a.flag", int), ("a.words", str)])
def test_metadata_of_another_type_is_refused(path: Path, name: str, kind: type) -> None:
    metadata = opened(path, SOUND).metadata

    with pytest.raises(StartError, match=name):
        metadata.get(name, kind)


def test_metadata_access(path: Path) -> None:
    metadata = opened(path, SOUND).metadata

    assert metadata.get("a.whole", float) == 7
    assert metadata.get("absent", int) is None
    assert metadata.get_list("absent", int) is None
    assert metadata.get_list("a.numbers", int) == [1, -2, 3]
    with pytest.raises(StartError, match=r"a\.words is not an array of int"):
        metadata.get_list("a.words", int)
    with pytest.raises(StartError, match="key absent is missing"):
        metadata.require("absent", int)
