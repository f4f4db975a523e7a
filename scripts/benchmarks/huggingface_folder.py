"""A model of ours as a Hugging Face folder with bfloat16 weights, for engines that read nothing else.

The numbers are those that our own readers give: dequantised, query and key rows in Hugging Face order. Written once per
model. Knows the container format of safetensors; https://github.com/huggingface/safetensors#format
"""

import json
import struct
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import torch

from forebay.models.config import DecoderConfig
from forebay.models.decoder_tensors import tensor_shapes
from forebay.models.model_file import ModelFile
from forebay.tokenizer.build import build_tokenizer

_BFLOAT16_BYTES = 2
_DONE = "complete"  # names the model's digest, and is written last


def huggingface_folder(model: ModelFile, parent: Path, progress: Callable[[str], None]) -> Path:
    """The folder inside `parent`, written first if it is not there whole."""
    folder = parent / model.name
    stamp = folder / _DONE
    if not stamp.is_file() or stamp.read_text() != model.digest:
        progress(f"converting the weights to bfloat16 in {folder}, once")
        folder.mkdir(parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)
        (folder / "config.json").write_text(json.dumps(_config(model.config), indent=2) + "\n")
        build_tokenizer(model.tokenizer_source).save(str(folder / "tokenizer.json"))
        _write_weights(model, folder / "model.safetensors")
        stamp.write_text(model.digest)
    return folder


def _write_weights(model: ModelFile, path: Path) -> None:
    shapes = tensor_shapes(model.config)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + prod(shape) * _BFLOAT16_BYTES
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in shapes:
            numbers = torch.from_numpy(model.read_tensor(name)).to(torch.bfloat16)
            file.write(numbers.contiguous().view(torch.int16).numpy().tobytes())


def _config(config: DecoderConfig) -> dict[str, Any]:
    if config.architecture != "llama" or config.rope_scaling is not None:
        raise ValueError(f"only plain llama models can be converted, not {config.architecture}")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocabulary_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.query_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.context_tokens,
        "tie_word_embeddings": config.is_embedding_tied,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids),
        "torch_dtype": "bfloat16",
    }
