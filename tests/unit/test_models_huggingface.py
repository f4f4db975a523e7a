"""Hugging Face folders, against what transformers itself writes and reads."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from forebay.errors import StartError
from forebay.models.config import DecoderConfig, RopeScaling
from forebay.models.config_from_huggingface import config_from_huggingface
from forebay.models.model_file import open_model

TINY: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {}),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM, {"sliding_window": None}),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, {}),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, {"head_dim": 16}),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREBAY_CACHE", str(tmp_path / "cache"))


def saved(folder: Path, family: str, dtype: torch.dtype = torch.float32, shard: str = "1GB", **changes: Any) -> Any:
    """A random tiny model of the family in `folder`, as transformers saves it; the model itself."""
    config_class, model_class, own = FAMILIES[family]
    torch.manual_seed(0)
    model = model_class(config_class(**{**TINY, **own, **changes})).to(dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def changed(folder: Path, file: str = "config.json", **changes: Any) -> None:
    values = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**values, **changes}))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("is_tied", [False, True])
def test_reads_what_transformers_saved(tmp_path: Path, family: str, is_tied: bool) -> None:
    folder = tmp_path / "Tiny-Model"
    reference = saved(folder, family, tie_word_embeddings=is_tied).state_dict()

    model = open_model(folder)

    assert model.name == "Tiny-Model"
    assert model.config.architecture == family
    assert model.config.is_embedding_tied is is_tied
    assert set(model.tensor_names()) == reference.keys() - ({"lm_head.weight"} if is_tied else set())
    for name in model.tensor_names():
        np.testing.assert_array_equal(model.read_tensor(name), reference[name].numpy())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_shards_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    reference = saved(tmp_path, "llama", dtype, shard="20KB").state_dict()
    assert len(list(tmp_path.glob("*.safetensors"))) > 1

    model = open_model(tmp_path)

    for name in model.tensor_names():
        tensor = model.read_tensor(name)
        assert tensor.dtype == np.float32
        np.testing.assert_array_equal(tensor, reference[name].float().numpy())


def test_config(tmp_path: Path) -> None:
    saved(tmp_path, "qwen3", rope_parameters={"rope_type": "default", "rope_theta": 1e6})

    assert config_from_huggingface(tmp_path) == DecoderConfig(
        architecture="qwen3",
        vocabulary_size=96,
        layers=2,
        hidden_size=32,
        intermediate_size=48,
        query_heads=4,
        kv_heads=2,
        head_dim=16,
        rms_norm_eps=1e-5,
        rope_theta=1e6,
        context_tokens=128,
        has_qk_norm=True,
        eos_token_ids=(2,),
        bos_token_id=1,
    )


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
ROPES = {
    "transformers 5": ({"rope_parameters": {**LLAMA3, "rope_theta": 5e5}}, 5e5, RopeScaling("llama3", 8, 1, 4, 64)),
    "transformers 4": ({"rope_theta": 5e5, "rope_scaling": LLAMA3}, 5e5, RopeScaling("llama3", 8, 1, 4, 64)),
    "old type key": ({"rope_scaling": {"type": "linear", "factor": 2}}, 1e4, RopeScaling("linear", 2)),
    "null": ({"rope_theta": 7, "rope_scaling": None}, 7, None),
    "none at all": ({}, 1e4, None),
}


@pytest.mark.parametrize(("keys", "theta", "scaling"), ROPES.values(), ids=ROPES.keys())
def test_rope_in_both_forms(tmp_path: Path, keys: dict[str, Any], theta: float, scaling: RopeScaling | None) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**TINY, "architectures": ["LlamaForCausalLM"], **keys}))

    config = config_from_huggingface(tmp_path)

    assert (config.rope_theta, config.rope_scaling) == (theta, scaling)


def test_generation_config_has_the_last_word_on_eos(tmp_path: Path) -> None:
    saved(tmp_path, "llama")
    changed(tmp_path, eos_token_id=[2, 3, 2])
    (tmp_path / "generation_config.json").unlink()
    assert open_model(tmp_path).config.eos_token_ids == (2, 3)

    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    assert open_model(tmp_path).config.eos_token_ids == (5, 6)


UNSUPPORTED = {
    "architecture": ({"architectures": ["GemmaForCausalLM"]}, "architecture GemmaForCausalLM is not supported"),
    "no architecture": ({"architectures": None}, r"architecture \(none\) is not supported"),
    "rope": ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0, "factor": 2.0}}, "rope scaling yarn"),
    "rope per layer": ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "different rope_parameters"),
    "partial rope": ({"rope_parameters": {"rope_theta": 1.0, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    "quantized": ({"quantization_config": {"bits": 4}}, "a quantized checkpoint"),
    "activation": ({"hidden_act": "gelu"}, "activation gelu"),
    "bias": ({"attention_bias": True}, "attention_bias"),
    "window": ({"architectures": ["MistralForCausalLM"], "sliding_window": 64}, "a sliding window of 64 tokens"),
    "no layers": ({"num_hidden_layers": 0}, "layers is 0"),
    "heads": ({"num_key_value_heads": 3}, "4 query heads are not a multiple of 3"),
    "odd head": ({"head_dim": 7}, "head_dim 7 is odd"),
    "epsilon": ({"rms_norm_eps": 0}, "not positive"),
    "no context": ({"max_position_embeddings": -1}, "context_tokens is -1"),
    "eos": ({"eos_token_id": 96}, "special token id 96"),
    "eos type": ({"eos_token_id": "two"}, "eos_token_id is neither"),
    "missing key": ({"hidden_size": None}, "key hidden_size is missing"),
    "type": ({"vocab_size": "many"}, "vocab_size is str instead of int"),
    "truth as number": ({"vocab_size": True}, "vocab_size is bool instead of int"),
}


@pytest.mark.parametrize(("changes", "expected"), UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
def test_refuses_what_it_cannot_run(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    values = {**TINY, "architectures": ["LlamaForCausalLM"], **changes}
    (tmp_path / "config.json").write_text(json.dumps(values))

    with pytest.raises(StartError, match=expected):
        config_from_huggingface(tmp_path)


def test_an_unused_window_is_no_window(tmp_path: Path) -> None:
    values = {**TINY, "architectures": ["Qwen2ForCausalLM"], "sliding_window": 4, "use_sliding_window": False}
    (tmp_path / "config.json").write_text(json.dumps(values))

    assert config_from_huggingface(tmp_path).sliding_window is None


def broken_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{")


def missing_shard(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "model-00002.safetensors"}}')


def shard_elsewhere(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../model.safetensors"}}')


def cut_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:20])


def cut_data(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1])


def write_header(folder: Path, header: bytes, data: bytes = b"") -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)


def entry(shape: list[int], end: int) -> bytes:
    return json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()


DAMAGES = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "is this a Hugging Face model folder"),
    "config no JSON": (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
    "config no object": (lambda folder: (folder / "config.json").write_text("[]"), "not a JSON object"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "only safetensors weights"),
    "broken index": (broken_index, "not valid JSON"),
    "missing shard": (missing_shard, "weight shard model-00002.safetensors is missing"),
    "shard elsewhere": (shard_elsewhere, "weight shard model.safetensors is missing"),
    "empty weights": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "header does not fit"),
    "cut header": (cut_header, "header does not fit"),
    "cut data": (cut_data, "lies beyond the end of the file"),
    "header no JSON": (lambda folder: write_header(folder, b"{x}"), "not what safetensors prescribes"),
    "header no object": (lambda folder: write_header(folder, b"[1]"), "not what safetensors prescribes"),
    "no offsets": (lambda folder: write_header(folder, b'{"x": {}}'), "not what safetensors prescribes"),
    "size": (lambda folder: write_header(folder, entry([2], 4), bytes(4)), "which is not its shape"),
    "missing tensor": (lambda folder: write_header(folder, b"{}"), "tensor model.embed_tokens.weight is missing"),
}


@pytest.mark.parametrize(("damage", "expected"), DAMAGES.values(), ids=DAMAGES.keys())
def test_refuses_a_damaged_folder_in_one_line(tmp_path: Path, damage: Any, expected: str) -> None:
    saved(tmp_path, "llama")
    damage(tmp_path)

    with pytest.raises(StartError, match=expected) as refusal:
        open_model(tmp_path)

    assert "\n" not in refusal.value.message


def test_refuses_a_wrong_shape_and_names_it(tmp_path: Path) -> None:
    saved(tmp_path, "llama")
    changed(tmp_path, vocab_size=97)

    with pytest.raises(StartError, match=r"embed_tokens\.weight has shape \(96, 32\) instead of \(97, 32\)"):
        open_model(tmp_path)


def test_refuses_a_tensor_that_nobody_would_read(tmp_path: Path) -> None:
    saved(tmp_path, "qwen2")
    changed(tmp_path, architectures=["LlamaForCausalLM"])

    with pytest.raises(StartError, match=r"_proj\.bias is not supported"):
        open_model(tmp_path)


def test_chat_template_sources(tmp_path: Path) -> None:
    saved(tmp_path, "llama")
    assert open_model(tmp_path).chat_template is None

    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "one"}')
    assert open_model(tmp_path).chat_template == "one"

    named = [{"name": "tool_use", "template": "two"}, {"name": "default", "template": "three"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert open_model(tmp_path).chat_template == "three"

    (tmp_path / "chat_template.jinja").write_text("four")
    assert open_model(tmp_path).chat_template == "four"
    assert open_model(tmp_path).tokenizer_source == tmp_path / "tokenizer.json"


def test_digest_follows_bytes_not_places(tmp_path: Path) -> None:
    for name in ("a", "b"):
        saved(tmp_path / name, "llama")
    digest = open_model(tmp_path / "a").digest
    assert len(digest) == 32
    assert open_model(tmp_path / "b").digest == digest

    changed(tmp_path / "b", rms_norm_eps=1e-6)
    assert open_model(tmp_path / "b").digest != digest
