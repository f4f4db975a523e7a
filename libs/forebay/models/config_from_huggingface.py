"""DecoderConfig from the config.json and generation_config.json of a Hugging Face folder, of transformers 4 or 5."""

from pathlib import Path

from forebay.models.config import DecoderConfig, RopeScaling
from forebay.models.config_check import check_config
from forebay.models.json_file import JsonObject, read_json
from forebay.models.refusals import unsupported

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "MistralForCausalLM": "mistral",
}
_DEFAULT_ROPE_THETA = 10_000.0  # transformers', when neither form gives one


def config_from_huggingface(folder: Path) -> DecoderConfig:
    """The decoder that the folder's config.json describes.

    Raises:
        StartError: a file is missing or broken, a key is missing or of the wrong type, or the decoder is of an
            unsupported kind.
    """
    config = read_json(folder / "config.json")
    architecture = _architecture(config)
    _refuse_unsupported(config, architecture)
    query_heads = config.require("num_attention_heads", int)
    hidden_size = config.require("hidden_size", int)
    eos_token_ids, bos_token_id = _special_token_ids(folder, config)
    rope_theta, rope_scaling = _rope(config)
    decoder = DecoderConfig(
        architecture=architecture,
        vocabulary_size=config.require("vocab_size", int),
        layers=config.require("num_hidden_layers", int),
        hidden_size=hidden_size,
        intermediate_size=config.require("intermediate_size", int),
        query_heads=query_heads,
        kv_heads=config.get("num_key_value_heads", int) or query_heads,
        head_dim=config.get("head_dim", int) or hidden_size // max(query_heads, 1),
        rms_norm_eps=config.require("rms_norm_eps", float),
        rope_theta=rope_theta,
        context_tokens=config.require("max_position_embeddings", int),
        rope_scaling=rope_scaling,
        sliding_window=_sliding_window(config, architecture),
        is_embedding_tied=bool(config.get("tie_word_embeddings", bool)),
        has_qkv_bias=architecture == "qwen2",
        has_qk_norm=architecture == "qwen3",
        eos_token_ids=eos_token_ids,
        bos_token_id=bos_token_id,
    )
    return check_config(config.path, decoder)


def _architecture(config: JsonObject) -> str:
    names = config.get("architectures", list) or ["(none)"]
    architecture = ARCHITECTURES.get(str(names[0]))
    if architecture is None:
        raise unsupported(config.path, f"architecture {names[0]}", ARCHITECTURES)
    return architecture


def _refuse_unsupported(config: JsonObject, architecture: str) -> None:
    if config.get("quantization_config", dict):
        raise unsupported(
            config.path, "a quantized checkpoint", ["float32, float16 and bfloat16 weights, or a GGUF file"]
        )
    activation = config.get("hidden_act", str) or "silu"
    if activation != "silu":
        raise unsupported(config.path, f"activation {activation}", ["silu"])
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key, bool) and architecture != "qwen2":
            raise unsupported(config.path, key, ["decoders without it"])


def _sliding_window(config: JsonObject, architecture: str) -> int | None:
    """The window in force. Qwen writes one down always, and uses it only when use_sliding_window says so."""
    if architecture == "llama" or (architecture != "mistral" and not config.get("use_sliding_window", bool)):
        return None
    return config.get("sliding_window", int)


def _rope(config: JsonObject) -> tuple[float, RopeScaling | None]:
    """Base and scaling, from transformers 5's rope_parameters or from the older pair of keys."""
    rope = config.child("rope_parameters") or config.child("rope_scaling") or JsonObject(config.path, {})
    theta = rope.get("rope_theta", float) or config.get("rope_theta", float) or _DEFAULT_ROPE_THETA
    partial = rope.get("partial_rotary_factor", float) or config.get("partial_rotary_factor", float) or 1.0
    if partial != 1.0:
        raise unsupported(config.path, f"partial_rotary_factor {partial}", ["rotation of whole heads"])
    if any(isinstance(value, dict) for value in rope.values.values()):
        raise unsupported(config.path, "different rope_parameters per layer type", ["one set of rope_parameters"])
    kind = rope.get("rope_type", str) or rope.get("type", str) or "default"
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling("linear", rope.require("factor", float))
    if kind != "llama3":
        raise unsupported(config.path, f"rope scaling {kind}", ["default", "linear", "llama3"])
    return theta, RopeScaling(
        "llama3",
        rope.require("factor", float),
        rope.require("low_freq_factor", float),
        rope.require("high_freq_factor", float),
        rope.require("original_max_position_embeddings", int),
    )


def _special_token_ids(folder: Path, config: JsonObject) -> tuple[tuple[int, ...], int | None]:
    """End-of-sequence ids and the beginning-of-sequence id; generation_config.json, where it is, has the last word."""
    generation = JsonObject(config.path, {})
    if (folder / "generation_config.json").is_file():
        generation = read_json(folder / "generation_config.json")
    eos_ids = generation.integers("eos_token_id") or config.integers("eos_token_id")
    bos_ids = generation.integers("bos_token_id") or config.integers("bos_token_id")
    return eos_ids, bos_ids[0] if bos_ids else None
