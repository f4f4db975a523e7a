"""The real model in float32 against transformers, which dequantises the same GGUF by itself."""

import warnings

import pytest
import torch
import transformers
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from forebay.chips import chip_class_named
from forebay.engine.types import Slice
from forebay.models.default_model import resolve_model
from forebay.models.model_file import open_model
from forebay.testing.engine_runs import engine_run
from forebay.testing.prompts import LONG_PROMPTS, PROMPTS

GENERATED_TOKENS = 64


@pytest.fixture(scope="module")
def reference():
    """The model as transformers' own GGUF reader sees it. (`from_pretrained` would need accelerate for the same.)"""
    path = resolve_model(None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers, about itself
        config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        loaded = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)
    missing, unexpected = model.load_state_dict(loaded["tensors"], strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])  # tied
    return model.eval()


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    path = resolve_model(None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]


def reference_logits(reference, token_ids: list[int], row_count: int) -> torch.Tensor:
    with torch.inference_mode():
        return reference(torch.tensor([token_ids]), logits_to_keep=row_count).logits[0]


@pytest.mark.parametrize("name", ["cpu-f32", "cpu-f32-tp2", "cpu-f32-tp3"])
def test_logits_and_greedy_tokens_are_those_of_transformers(reference, prompts, name):
    """Logits of every prompt and of all 64 tokens after it; a token is the reference's own if it is its likeliest one
    after the same tokens, so one pass over prompt and answer proves 64 steps.
    """
    run = engine_run(open_model(resolve_model(None)), chip_class_named(name), block_count=200)
    sequences = [run.sequence(token_ids, room_tokens=GENERATED_TOKENS) for token_ids in prompts]
    steps = [torch.cat([run.logits([Slice(sequence, sequence.token_count)]) for sequence in sequences])]
    for _ in range(GENERATED_TOKENS):
        for sequence, token_id in zip(sequences, steps[-1].argmax(-1).tolist(), strict=True):
            sequence.output_token_ids.append(token_id)
        steps.append(run.logits([Slice(sequence, 1) for sequence in sequences]))
    ours = torch.stack(steps, 1)

    for logits, sequence in zip(ours, sequences, strict=True):
        token_ids = sequence.prompt_token_ids + sequence.output_token_ids
        expected = reference_logits(reference, token_ids, GENERATED_TOKENS + 1)
        torch.testing.assert_close(logits, expected, atol=1e-3, rtol=0)
        assert expected.argmax(-1)[:-1].tolist() == sequence.output_token_ids


def test_the_prompts_are_as_varied_as_the_comparison_claims(prompts):
    assert len(prompts) == 20
    assert all(len(token_ids) > 1000 for token_ids in prompts[-len(LONG_PROMPTS) :])
    assert len(prompts[0]) == 1


def test_bfloat16_stays_near_float32(reference, prompts):
    run = engine_run(open_model(resolve_model(None)), chip_class_named("cpu-bf16"), block_count=200)
    chosen = [token_ids for token_ids in prompts if 15 < len(token_ids) < 1000]
    ours = torch.cat([run.logits([Slice(run.sequence(token_ids), len(token_ids))]) for token_ids in chosen])
    expected = torch.cat([reference_logits(reference, token_ids, 1) for token_ids in chosen])

    divergence = torch.nn.functional.kl_div(
        ours.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="batchmean"
    )

    assert divergence < 0.001
