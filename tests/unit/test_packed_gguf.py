"""A quantised GGUF file of the llama architecture on the native kernels: its packed blocks are the numbers it means."""

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from forebay.engine.types import Slice
from forebay.engine.weight_file import TensorSpec, write_weight_file
from forebay.kernels.cpu.packed_model import WeightPolicy
from forebay.kv.layout import KvDtype
from forebay.models.decoder_tensors import gguf_name
from forebay.models.model_file import ModelFile, open_model
from forebay.testing.native_runs import EXACT, NativeSettings, native_run
from forebay.testing.tiny_models import TINY_LLAMA, write_tiny_model

HEADS = {"q_proj": 4, "k_proj": 2}
F32, Q4_1, Q8_0 = (gguf.GGMLQuantizationType[name] for name in ("F32", "Q4_1", "Q8_0"))
PROMPT = [(7 * index + 3) % 256 for index in range(40)]


def stored_type(name: str, shape: tuple[int, ...]) -> gguf.GGMLQuantizationType:
    """Of both layers' q and k, one is Q4_1 and one Q8_0."""
    if len(shape) == 1:
        return F32
    return Q8_0 if "embed" in name or ".0.self_attn.q" in name or ".1.self_attn.k" in name else Q4_1


def as_llama_cpp_orders(name: str, numbers: NDArray[np.float32]) -> NDArray[np.float32]:
    """What its converter does to q and k: a head's halves become its even and odd rows."""
    heads = next((count for part, count in HEADS.items() if part in name), None)
    if heads is None:
        return numbers
    return numbers.reshape(heads, 2, len(numbers) // heads // 2, -1).swapaxes(1, 2).reshape(numbers.shape)


def write_gguf(path: Path, tensors: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Writes tensors under their Hugging Face names. Returns the numbers that the file then holds, in their order."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(TINY_LLAMA["num_hidden_layers"])
    writer.add_context_length(TINY_LLAMA["max_position_embeddings"])
    writer.add_embedding_length(TINY_LLAMA["hidden_size"])
    writer.add_feed_forward_length(TINY_LLAMA["intermediate_size"])
    writer.add_head_count(TINY_LLAMA["num_attention_heads"])
    writer.add_head_count_kv(TINY_LLAMA["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(TINY_LLAMA["rms_norm_eps"])
    writer.add_rope_freq_base(TINY_LLAMA["rope_theta"])
    writer.add_eos_token_id(TINY_LLAMA["eos_token_id"])
    held = {}
    for name, numbers in tensors.items():
        kind = stored_type(name, numbers.shape)
        blocks = gguf.quants.quantize(as_llama_cpp_orders(name, numbers), kind)
        writer.add_tensor(gguf_name(name), blocks, raw_dtype=kind)
        # Blocks run along a row, so that the order of rows does not matter to what a row becomes.
        held[name] = gguf.quants.dequantize(gguf.quants.quantize(numbers, kind), kind).astype(np.float32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


@pytest.fixture
def models(tmp_path: Path) -> tuple[ModelFile, ModelFile]:
    """A GGUF file, and a folder of safetensors with the numbers that it holds, in Hugging Face order."""
    folder = write_tiny_model(tmp_path / "folder")
    source = open_model(folder)
    held = write_gguf(tmp_path / "tiny.gguf", {name: source.read_tensor(name) for name in source.tensor_names()})
    specs = [TensorSpec(name, torch.float32, numbers.shape) for name, numbers in held.items()]
    write_weight_file(folder / "model.safetensors", {}, specs, lambda spec: torch.from_numpy(held[spec.name]))
    return open_model(tmp_path / "tiny.gguf"), open_model(folder)


def logits(model: ModelFile, settings: NativeSettings) -> NDArray[np.float32]:
    """After each of some tokens of the prompt."""
    run = native_run(model, 4, settings)
    sequence = run.sequence(PROMPT[:1], len(PROMPT))
    rows = []
    for token_id in PROMPT[1:]:
        rows.append(run.logits([Slice(sequence, 1)])[0])
        sequence.output_token_ids.append(token_id)
    return np.stack(rows)


def test_blocks_kept_as_they_are_mean_the_same_numbers(models: tuple[ModelFile, ModelFile]) -> None:
    packed, folder = models

    expected = logits(folder, EXACT)
    found = logits(packed, NativeSettings(WeightPolicy.BFLOAT16, KvDtype.FLOAT32))

    # What is left is the rounding of activations to 16 bits.
    assert np.abs(found - expected).max() < 1e-3 * expected.std()


def test_dequantised_blocks_are_the_same_numbers(models: tuple[ModelFile, ModelFile]) -> None:
    packed, folder = models

    assert np.array_equal(logits(packed, EXACT), logits(folder, EXACT))
