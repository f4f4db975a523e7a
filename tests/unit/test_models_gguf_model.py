"""Models in GGUF: configuration, names, row order and checks, on tiny files that the reference package writes."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from forebay.errors import StartError
from forebay.models.config import RopeScaling
from forebay.models.decoder_tensors import gguf_name, tensor_shapes
from forebay.models.model_digest import model_digest
from forebay.models.model_file import ModelFile, open_model

VOCABULARY, HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 64, 32, 64, 2, 4, 2, 8


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FOREBAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def interleaved(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """What llama.cpp's converter does to q and k of the llama architecture."""
    return rows.reshape(heads, 2, len(rows) // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def tiny_tensors(architecture: str) -> dict[str, NDArray[np.float32]]:
    """Random tensors under llama.cpp's names, rows in Hugging Face order."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCABULARY, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        own = {
            "attn_norm.weight": (HIDDEN,),
            "attn_q.weight": (HEADS * HEAD_DIM, HIDDEN),
            "attn_k.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            "attn_v.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            "attn_output.weight": (HIDDEN, HEADS * HEAD_DIM),
            "ffn_norm.weight": (HIDDEN,),
            "ffn_gate.weight": (INTERMEDIATE, HIDDEN),
            "ffn_up.weight": (INTERMEDIATE, HIDDEN),
            "ffn_down.weight": (HIDDEN, INTERMEDIATE),
        }
        if architecture == "qwen2":
            own |= {"attn_q.bias": (HEADS * HEAD_DIM,), "attn_k.bias": (KV_HEADS * HEAD_DIM,)}
            own |= {"attn_v.bias": (KV_HEADS * HEAD_DIM,)}
        if architecture == "qwen3":
            own |= {"attn_q_norm.weight": (HEAD_DIM,), "attn_k_norm.weight": (HEAD_DIM,)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in own.items()}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write(
    path: Path,
    architecture: str = "llama",
    tensors: dict[str, NDArray[np.float32]] | None = None,
    keys: dict[str, Any] | None = None,
) -> Path:
    """A tiny model file; `keys` are added to, or with None removed from, what llama.cpp would write."""
    writer = gguf.GGUFWriter(path, architecture)
    values: dict[str, Any] = {
        f"{architecture}.block_count": LAYERS,
        f"{architecture}.context_length": 256,
        f"{architecture}.embedding_length": HIDDEN,
        f"{architecture}.feed_forward_length": INTERMEDIATE,
        f"{architecture}.attention.head_count": HEADS,
        f"{architecture}.attention.head_count_kv": KV_HEADS,
        f"{architecture}.attention.layer_norm_rms_epsilon": 0.5,
        f"{architecture}.rope.freq_base": 500000.0,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.bos_token_id": 1,
        **(keys or {}),
    }
    add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
    for name, value in values.items():
        if value is not None:
            add[type(value)](name, value)
    for name, tensor in (tiny_tensors(architecture) if tensors is None else tensors).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_tensors_have_hugging_face_names_and_row_order(tmp_path: Path, architecture: str) -> None:
    expected = tiny_tensors(architecture)
    stored = dict(expected)
    if architecture == "llama":
        for layer in range(LAYERS):
            stored[f"blk.{layer}.attn_q.weight"] = interleaved(expected[f"blk.{layer}.attn_q.weight"], HEADS)
            stored[f"blk.{layer}.attn_k.weight"] = interleaved(expected[f"blk.{layer}.attn_k.weight"], KV_HEADS)

    model = open_model(write(tmp_path / "m.gguf", architecture, stored))

    assert model.config.architecture == architecture
    assert len(model.tensor_names()) == len(expected)
    for name in model.tensor_names():
        np.testing.assert_array_equal(model.read_tensor(name), expected[gguf_name(name)], err_msg=name)


def test_names_of_both_worlds() -> None:
    assert gguf_name("model.norm.weight") == "output_norm.weight"
    assert gguf_name("lm_head.weight") == "output.weight"
    assert gguf_name("model.layers.12.self_attn.q_proj.bias") == "blk.12.attn_q.bias"
    assert gguf_name("model.layers.0.post_attention_layernorm.weight") == "blk.0.ffn_norm.weight"


def test_config(tmp_path: Path) -> None:
    config = open_model(write(tmp_path / "m.gguf", keys={"tokenizer.ggml.eot_token_id": 7})).config

    assert (config.vocabulary_size, config.layers, config.hidden_size) == (VOCABULARY, LAYERS, HIDDEN)
    assert (config.query_heads, config.kv_heads, config.head_dim) == (HEADS, KV_HEADS, HEAD_DIM)
    assert (config.rms_norm_eps, config.rope_theta, config.context_tokens) == (0.5, 500000.0, 256)
    assert (config.eos_token_ids, config.bos_token_id) == ((2, 7), 1)
    assert config.is_embedding_tied
    assert config.rope_scaling is None


def test_an_own_head_unties_the_embedding(tmp_path: Path) -> None:
    head = np.ones((VOCABULARY, HIDDEN), np.float32)

    model = open_model(write(tmp_path / "m.gguf", tensors={**tiny_tensors("llama"), "output.weight": head}))

    assert not model.config.is_embedding_tied
    np.testing.assert_array_equal(model.read_tensor("lm_head.weight"), head)


def llama3_factors(**changes: float) -> NDArray[np.float32]:
    """What llama.cpp stores for Llama 3.2, computed by transformers: by how much each frequency is divided."""
    scaled = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    shape = {"hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 131072}
    config = LlamaConfig(**shape, rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **scaled, **changes})
    scaled_frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    frequencies = 1 / 5e5 ** (np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    factors: NDArray[np.float32] = (frequencies / scaled_frequencies.numpy()).astype(np.float32)
    return factors


def test_llama3_scaling_is_recovered_from_its_factors(tmp_path: Path) -> None:
    tensors = {**tiny_tensors("llama"), "rope_freqs.weight": llama3_factors()}

    model = open_model(write(tmp_path / "m.gguf", tensors=tensors))

    assert model.config.rope_scaling is not None
    assert model.config.rope_scaling.kind == "llama3"
    assert model.config.rope_scaling.factor == pytest.approx(32)
    assert "rope_freqs.weight" not in model.tensor_names()


def test_linear_scaling(tmp_path: Path) -> None:
    keys = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}

    assert open_model(write(tmp_path / "m.gguf", keys=keys)).config.rope_scaling == RopeScaling("linear", 4.0)


UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "experts": ({"llama.expert_count": 8}, "a mixture of experts"),
    "rope": ({"llama.rope.scaling.type": "yarn"}, "rope scaling yarn"),
    "rotary size": ({"llama.rope.dimension_count": 4}, "rotary embedding of 4 of 8"),
    "value size": ({"llama.attention.value_length": 4}, "value head size"),
    "heads per layer": ({"llama.attention.head_count_kv": [1, 2]}, "number of heads per layer"),
    "window": ({"llama.attention.sliding_window": 16}, "sliding window of 16"),
    "missing key": ({"llama.block_count": None}, r"llama\.block_count is missing"),
    "wrong type": ({"llama.block_count": "two"}, r"llama\.block_count is str instead of int"),
    "missing layer": ({"llama.block_count": 3}, r"tensor blk\.2\..* is missing"),
    "shape": (
        {"llama.feed_forward_length": 96},
        r"blk\.0\.ffn_gate\.weight has shape \(64, 32\) instead of \(96, 32\)",
    ),
}


@pytest.mark.parametrize(("keys", "expected"), UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
def test_refuses_what_it_cannot_run(tmp_path: Path, keys: dict[str, Any], expected: str) -> None:
    path = write(tmp_path / "m.gguf", keys=keys)

    with pytest.raises(StartError, match=expected) as refusal:
        open_model(path)

    assert "\n" not in refusal.value.message


def test_refuses_an_unknown_architecture(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="architecture gemma3 is not supported; supported: llama, qwen2, qwen3"):
        open_model(write(tmp_path / "m.gguf", "gemma3"))


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"blk.0.attn_q.bias": np.zeros(32, np.float32)}, r"attn_q\.bias is not supported"),
        ({"rope_freqs.weight": llama3_factors(high_freq_factor=2.0) + 1}, r"rope_freqs\.weight is not supported"),
    ],
)
def test_refuses_tensors_it_does_not_understand(tmp_path: Path, extra: dict[str, Any], expected: str) -> None:
    with pytest.raises(StartError, match=expected):
        open_model(write(tmp_path / "m.gguf", tensors={**tiny_tensors("llama"), **extra}))


def test_refuses_a_model_without_embedding(tmp_path: Path) -> None:
    tensors = tiny_tensors("llama")
    del tensors["token_embd.weight"]

    with pytest.raises(StartError, match=r"token_embd\.weight .* is missing"):
        open_model(write(tmp_path / "m.gguf", tensors=tensors))


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct"),
        ("qwen2.5-0.5b-instruct-q4_k_m.gguf", "qwen2.5-0.5b-instruct"),
        ("Qwen3-0.6B-BF16.gguf", "Qwen3-0.6B"),
        ("plain.gguf", "plain"),
    ],
)
def test_served_name_is_the_file_s_without_its_precision(tmp_path: Path, file: str, name: str) -> None:
    assert open_model(write(tmp_path / file)).name == name


def test_refuses_a_missing_path(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="no such model"):
        open_model(tmp_path / "absent.gguf")


def test_template_and_tokenizer_come_from_the_metadata(tmp_path: Path) -> None:
    model: ModelFile = open_model(write(tmp_path / "m.gguf", keys={"tokenizer.chat_template": "hello"}))

    assert model.chat_template == "hello"
    assert not isinstance(model.tokenizer_source, Path)
    assert model.tokenizer_source.require("tokenizer.ggml.eos_token_id", int) == 2


def test_digest_is_remembered_until_the_file_changes(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    first = model_digest([path])
    (remembered,) = (cache / "digests").iterdir()
    assert remembered.read_text() == first

    remembered.write_text("0" * 32)
    assert model_digest([path]) == "0" * 32, "the remembered digest was not used"

    remembered.write_text("damaged")
    assert model_digest([path]) == first

    path.write_bytes(b"other")
    assert model_digest([path]) != first


def test_digest_needs_no_cache(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    first = model_digest([path])
    (cache / "digests").rename(tmp_path / "away")
    (cache / "digests").write_text("a file where the folder should be")

    assert model_digest([path]) == first


def test_digest_tells_how_bytes_are_spread(tmp_path: Path) -> None:
    contents = {"a": b"one", "b": b"two", "c": b"onet", "d": b"wo"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)

    assert model_digest([tmp_path / "a", tmp_path / "b"]) != model_digest([tmp_path / "c", tmp_path / "d"])


def test_shapes_agree_with_the_files(tmp_path: Path) -> None:
    model = open_model(write(tmp_path / "m.gguf"))

    assert {name: model.read_tensor(name).shape for name in model.tensor_names()} == tensor_shapes(model.config)
