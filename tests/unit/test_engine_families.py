"""Every decoder family against transformers, on tiny random checkpoints that transformers itself wrote."""

from dataclasses import replace

import pytest
import torch
import transformers

from forebay.chips import chip_class_named
from forebay.engine.types import Slice
from forebay.models.model_file import open_model
from forebay.testing.engine_runs import engine_run

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "pad_token_id": None,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES = {
    "llama": (transformers.LlamaConfig, {}),
    "llama-tied": (transformers.LlamaConfig, {"tie_word_embeddings": True}),
    "llama-wide-heads": (transformers.LlamaConfig, {"head_dim": 40, "num_key_value_heads": 1}),
    "llama-no-groups": (transformers.LlamaConfig, {"num_key_value_heads": 4}),
    "llama-rope-llama3": (transformers.LlamaConfig, {"rope_parameters": LLAMA3_ROPE}),
    "llama-rope-linear": (
        transformers.LlamaConfig,
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    ),
    "qwen2": (transformers.Qwen2Config, {}),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 24}),
    "mistral": (transformers.MistralConfig, {"head_dim": 16, "sliding_window": None}),
}
RANKED = [("llama-no-groups", 3), ("llama", 2), ("qwen2", 2), ("qwen3", 2)]  # ranks, uneven; biases and head norms too
PROMPT = [(7 * position * position + 3) % 300 for position in range(150)]


def reference_of(family: str):
    """The family's model with every parameter random, so that no bias is 0 and no norm is 1."""
    make_config, changes = FAMILIES[family]
    torch.manual_seed(sorted(FAMILIES).index(family))
    reference = transformers.AutoModelForCausalLM.from_config(make_config(**(SHAPE | changes)))
    for name, parameter in reference.named_parameters():
        if name.endswith(("bias", "norm.weight")):
            torch.nn.init.normal_(parameter, 1.0 if name.endswith("norm.weight") else 0.0, 0.3)
    return reference.eval()


@pytest.mark.parametrize(("family", "ranks"), [*((one, 1) for one in FAMILIES), *RANKED])
def test_logits_are_those_of_transformers(family, ranks, tmp_path, monkeypatch):
    monkeypatch.setenv("FOREBAY_CACHE", str(tmp_path / "cache"))
    reference = reference_of(family)
    reference.save_pretrained(tmp_path / "model")
    chip_class = replace(chip_class_named("cpu-f32"), ranks=ranks)
    run = engine_run(open_model(tmp_path / "model"), chip_class, block_count=8)
    with torch.inference_mode():
        expected = reference(torch.tensor([PROMPT])).logits[0]

    sequence = run.sequence(PROMPT[:1], room_tokens=len(PROMPT))
    ours = [run.logits([Slice(sequence, 1)])]
    for position in (40, 41, 120, 150):  # chunks of several sizes, across blocks
        sequence.prompt_token_ids += PROMPT[sequence.token_count : position]
        ours.append(run.logits([Slice(sequence, position - sequence.computed_tokens)]))

    rows = [length - 1 for length in (1, 40, 41, 120, 150)]
    torch.testing.assert_close(torch.cat(ours), expected[rows], atol=1e-3, rtol=0)
    assert expected[rows].std() > 0.5, "the logits are too flat to tell anything"
