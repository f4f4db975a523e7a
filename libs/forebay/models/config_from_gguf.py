"""DecoderConfig from GGUF metadata, as llama.cpp's converter writes it."""

from math import pi

import numpy as np
from numpy.typing import NDArray

from forebay.models.config import DecoderConfig, RopeScaling
from forebay.models.config_check import check_config
from forebay.models.gguf import GgufFile
from forebay.models.gguf_dequantize import dequantize
from forebay.models.gguf_metadata import GgufMetadata
from forebay.models.refusals import damaged, unsupported

ARCHITECTURES = ("llama", "qwen2", "qwen3")
_ROPE_FACTORS = "rope_freqs.weight"
_DEFAULT_ROPE_THETA = 10_000.0  # llama.cpp's, when the key is absent


def config_from_gguf(file: GgufFile) -> DecoderConfig:
    """The decoder that the file describes.

    Raises:
        StartError: a key is missing or of the wrong type, or the decoder is of an unsupported kind.
    """
    metadata = file.metadata
    architecture = metadata.require("general.architecture", str)
    if architecture not in ARCHITECTURES:
        raise unsupported(file.path, f"architecture {architecture}", ARCHITECTURES)
    if metadata.get(f"{architecture}.expert_count", int):
        raise unsupported(file.path, "a mixture of experts", ["dense decoders"])
    if isinstance(metadata.values.get(f"{architecture}.attention.head_count_kv"), list):
        raise unsupported(
            file.path, "a different number of heads per layer", ["the same number of heads in every layer"]
        )
    return check_config(file.path, _read_config(file, metadata, architecture))


def _read_config(file: GgufFile, metadata: GgufMetadata, architecture: str) -> DecoderConfig:
    hidden_size = metadata.require(f"{architecture}.embedding_length", int)
    query_heads = metadata.require(f"{architecture}.attention.head_count", int)
    head_dim = metadata.get(f"{architecture}.attention.key_length", int) or hidden_size // max(query_heads, 1)
    rotary_dim = metadata.get(f"{architecture}.rope.dimension_count", int) or head_dim
    if rotary_dim != head_dim:
        raise unsupported(
            file.path, f"rotary embedding of {rotary_dim} of {head_dim} numbers", ["rotation of whole heads"]
        )
    if (metadata.get(f"{architecture}.attention.value_length", int) or head_dim) != head_dim:
        raise unsupported(file.path, "a value head size other than the key's", ["equal key and value head sizes"])
    rope_theta = metadata.get(f"{architecture}.rope.freq_base", float) or _DEFAULT_ROPE_THETA
    return DecoderConfig(
        architecture=architecture,
        vocabulary_size=_vocabulary_size(file),
        layers=metadata.require(f"{architecture}.block_count", int),
        hidden_size=hidden_size,
        intermediate_size=metadata.require(f"{architecture}.feed_forward_length", int),
        query_heads=query_heads,
        kv_heads=metadata.get(f"{architecture}.attention.head_count_kv", int) or query_heads,
        head_dim=head_dim,
        rms_norm_eps=metadata.require(f"{architecture}.attention.layer_norm_rms_epsilon", float),
        rope_theta=float(rope_theta),
        context_tokens=metadata.require(f"{architecture}.context_length", int),
        rope_scaling=_rope_scaling(file, architecture, head_dim, rope_theta),
        sliding_window=metadata.get(f"{architecture}.attention.sliding_window", int) or None,
        is_embedding_tied="output.weight" not in file.tensors,
        has_qkv_bias=architecture == "qwen2",
        has_qk_norm=architecture == "qwen3",
        eos_token_ids=_eos_token_ids(metadata),
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id", int),
    )


def _vocabulary_size(file: GgufFile) -> int:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise damaged(file.path, "tensor token_embd.weight (model.embed_tokens.weight) is missing")
    return embedding.shape[0]


def _eos_token_ids(metadata: GgufMetadata) -> tuple[int, ...]:
    ids = (metadata.get(f"tokenizer.ggml.{key}_token_id", int) for key in ("eos", "eot"))
    return tuple(dict.fromkeys(token_id for token_id in ids if token_id is not None))


def _rope_scaling(file: GgufFile, architecture: str, head_dim: int, rope_theta: float) -> RopeScaling | None:
    if _ROPE_FACTORS in file.tensors:
        return _llama3_scaling(file, head_dim, rope_theta)
    kind = file.metadata.get(f"{architecture}.rope.scaling.type", str) or "none"
    if kind == "none":
        return None
    if kind != "linear":
        raise unsupported(file.path, f"rope scaling {kind}", ["none", "linear", "llama3 (as rope_freqs.weight)"])
    return RopeScaling("linear", file.metadata.require(f"{architecture}.rope.scaling.factor", float))


def _llama3_scaling(file: GgufFile, head_dim: int, rope_theta: float) -> RopeScaling:
    """llama.cpp stores only the resulting factor of each frequency: find the parameters and check that they give it."""
    tensor = file.tensors[_ROPE_FACTORS]
    stored = dequantize(file.read_packed(_ROPE_FACTORS), tensor.type, tensor.shape)
    scaling = RopeScaling("llama3", float(stored.max()) if stored.size else 1.0)
    expected = _llama3_factors(scaling, head_dim, rope_theta)
    if stored.shape != expected.shape or not np.allclose(stored, expected, rtol=1e-3):
        raise unsupported(file.path, "this rope_freqs.weight", ["Llama 3.1, 3.2 and 3.3 frequency factors"])
    return scaling


def _llama3_factors(scaling: RopeScaling, head_dim: int, rope_theta: float) -> NDArray[np.float64]:
    """By how much each of the head_dim / 2 frequencies is divided."""
    wavelengths = 2 * pi * rope_theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = np.clip((scaling.original_context_tokens / wavelengths - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / scaling.factor + smooth)
