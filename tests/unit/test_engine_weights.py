"""Packed weights: made once, shared by mapping, made again when damaged, refused when poisoned."""

import os
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest
import safetensors.torch
import torch

from forebay.chips import NumberFormat
from forebay.engine import weights as packing
from forebay.engine.weights import load_weights, packed_path
from forebay.errors import StartError
from forebay.models.model_file import ModelFile, open_model
from forebay.testing.tiny_models import TINY_LLAMA, write_tiny_model

BF16 = NumberFormat.BFLOAT16


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FOREBAY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path) -> ModelFile:
    return open_model(write_tiny_model(tmp_path / "tiny"))


def test_fused_matrices_hold_the_rows_of_their_parts(model, tmp_path):
    layer = load_weights(model, NumberFormat.FLOAT32, tmp_path).layers[1]

    parts = [model.read_tensor(f"model.layers.1.self_attn.{name}_proj.weight") for name in "qkv"]
    assert np.array_equal(layer.qkv.numpy(), np.concatenate(parts))
    gate, up = (model.read_tensor(f"model.layers.1.mlp.{name}_proj.weight") for name in ("gate", "up"))
    assert np.array_equal(layer.gate_up.numpy(), np.concatenate([gate, up]))


def test_matrices_are_rounded_and_norms_are_not(model, tmp_path):
    weights = load_weights(model, BF16, tmp_path)

    expected = torch.from_numpy(model.read_tensor("lm_head.weight")).to(torch.bfloat16)
    assert torch.equal(weights.head, expected)
    assert np.array_equal(weights.final_norm.numpy(), model.read_tensor("model.norm.weight"))


def test_a_tied_embedding_is_stored_once(tmp_path):
    model = open_model(write_tiny_model(tmp_path / "tied", {**TINY_LLAMA, "tie_word_embeddings": True}))

    weights = load_weights(model, BF16, tmp_path)

    assert weights.head.data_ptr() == weights.embedding.data_ptr()
    assert "head" not in safetensors.torch.load_file(packed_path(model, BF16, tmp_path))


def test_any_safetensors_reader_reads_the_packed_file(model, tmp_path):
    ours = load_weights(model, BF16, tmp_path)

    theirs = safetensors.torch.load_file(packed_path(model, BF16, tmp_path))

    assert torch.equal(theirs["layers.0.down"], ours.layers[0].down)
    assert torch.equal(theirs["embedding"], ours.embedding)


def test_the_second_load_packs_nothing_and_reports_nothing(model, tmp_path):
    told: list[tuple[int, int]] = []

    load_weights(model, BF16, tmp_path, lambda done_count, total_count: told.append((done_count, total_count)))
    assert told[-1][0] == told[-1][1] == len(told) == 3 + 2 * 6
    made = packed_path(model, BF16, tmp_path).stat().st_ino
    load_weights(model, BF16, tmp_path, lambda done_count, total_count: told.append((done_count, total_count)))

    assert len(told) == 3 + 2 * 6
    assert packed_path(model, BF16, tmp_path).stat().st_ino == made


def test_precisions_have_files_of_their_own(model, tmp_path):
    assert load_weights(model, BF16, tmp_path).head.dtype == torch.bfloat16
    assert load_weights(model, NumberFormat.FLOAT32, tmp_path).head.dtype == torch.float32


@pytest.mark.parametrize("kept", [0, 5, 40, 0.5, -1], ids=lambda kept: f"kept-{kept}")
def test_a_file_cut_short_is_made_again_with_a_line_in_the_log(model, tmp_path, caplog, kept):
    whole = load_weights(model, BF16, tmp_path).layers[0].qkv.clone()
    path = packed_path(model, BF16, tmp_path)
    size_bytes = path.stat().st_size
    os.truncate(path, int(size_bytes * kept) if isinstance(kept, float) else kept % size_bytes)

    again = load_weights(model, BF16, tmp_path)

    assert torch.equal(again.layers[0].qkv, whole)
    assert path.stat().st_size == size_bytes
    assert ["packing them again" in record.message for record in caplog.records] == [True, True]  # outside, under lock


def test_a_file_of_garbage_is_made_again(model, tmp_path):
    path = packed_path(model, BF16, tmp_path)
    path.write_bytes((64).to_bytes(8, "little") + b"{" * 500)

    assert len(load_weights(model, BF16, tmp_path).layers) == 2


def test_a_file_of_another_version_is_made_again(model, tmp_path, caplog, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr(packing, "PACKING_VERSION", "of-other-sources")
        load_weights(model, BF16, tmp_path)

    load_weights(model, BF16, tmp_path)

    assert f"have version of-other-sources, not {packing.PACKING_VERSION}" in caplog.text
    metadata = safetensors.safe_open(packed_path(model, BF16, tmp_path), "pt").metadata()
    assert metadata["packing_version"] == packing.PACKING_VERSION


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_poisoned_weight_is_refused_by_name(tmp_path, poison):
    folder = write_tiny_model(tmp_path / "bad")
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = poison
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    model = open_model(folder)

    with pytest.raises(StartError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        load_weights(model, BF16, tmp_path)

    assert list(tmp_path.glob("*.safetensors")) == []


def test_a_folder_that_cannot_be_written_is_refused_with_advice(model, tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(StartError, match="FOREBAY_CACHE"):
        load_weights(model, BF16, tmp_path / "file")


PACK_AND_TELL = """
import sys
from pathlib import Path
from forebay.chips import NumberFormat
from forebay.engine.weights import load_weights
from forebay.models.model_file import open_model

model, told = open_model(Path(sys.argv[1])), []
print("ready", flush=True)
sys.stdin.readline()
load_weights(model, NumberFormat.BFLOAT16, Path(sys.argv[2]), lambda done_count, total_count: told.append(done_count))
print(len(told))
"""


def test_of_two_processes_at_once_one_packs(model, tmp_path):
    command = [sys.executable, "-c", PACK_AND_TELL, str(model.path), str(tmp_path)]
    packers = [subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True) for _ in range(2)]
    assert [packer.stdout.readline() for packer in packers] == ["ready\n"] * 2
    for packer in packers:
        packer.stdin.write("go\n")
        packer.stdin.flush()

    packed = sorted(int(packer.communicate(timeout=60)[0]) for packer in packers)

    assert packed == [0, 15]


def test_the_weights_lie_in_the_page_cache_and_not_in_private_memory(model, tmp_path):
    weights = load_weights(model, BF16, tmp_path)
    weights.embedding.sum(), weights.head.sum()

    mapping = _mapping_of(packed_path(model, BF16, tmp_path))

    assert mapping["Rss"] > 0
    assert (mapping["Private_Dirty"], mapping["Anonymous"]) == (0, 0)


def _mapping_of(path: Path) -> dict[str, int]:
    """KiB of each kind of page in this process's mapping of the file."""
    _, found, rest = Path("/proc/self/smaps").read_text().partition(str(path))
    assert found, "not mapped"
    fields = (line.split() for line in rest.splitlines()[1:20])
    return {words[0].rstrip(":"): int(words[1]) for words in fields if len(words) == 3 and words[2] == "kB"}
