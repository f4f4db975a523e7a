"""Small models with random weights, written as Hugging Face folders. Knows their files; needs no transformers."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from forebay.engine.weight_file import TensorSpec, write_weight_file
from forebay.models.config_from_huggingface import config_from_huggingface
from forebay.models.decoder_tensors import tensor_shapes

TINY_LLAMA: Mapping[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 256,
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
    "hidden_act": "silu",
}


def write_tiny_model(folder: Path, config: Mapping[str, object] = TINY_LLAMA, seed: int = 0) -> Path:
    """Writes the model of that configuration; equal seeds make equal bytes. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    random = np.random.default_rng(seed)
    specs = [
        TensorSpec(name, torch.float32, shape) for name, shape in tensor_shapes(config_from_huggingface(folder)).items()
    ]

    def make(spec: TensorSpec) -> torch.Tensor:
        scale = 0.1 if len(spec.shape) == 1 else spec.shape[-1] ** -0.5
        centre = 1.0 if "norm" in spec.name else 0.0
        return torch.from_numpy((centre + scale * random.normal(size=spec.shape)).astype(np.float32))

    write_weight_file(folder / "model.safetensors", {"format": "pt"}, specs, make)
    return folder
