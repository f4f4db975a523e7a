"""The real model with KV of fewer bits: how far its predictions are from those with KV in float32.

The bounds are stated in docs/adr/014: KL(float32 || other) in nats, its mean over all positions, and the largest
difference of the likeliest token's log-probability. They are about twice what was measured.
"""

from dataclasses import replace

import pytest
import torch

from forebay.chips import ChipClass, chip_class_named
from forebay.engine.types import Slice
from forebay.kv.layout import KvDtype
from forebay.models.default_model import resolve_model
from forebay.models.model_file import ModelFile, open_model
from forebay.testing.engine_runs import engine_run
from forebay.testing.prompts import PROMPTS
from forebay.tokenizer.build import build_tokenizer

F32 = chip_class_named("cpu-f32")
ANSWER_TOKENS = 12


@pytest.fixture(scope="module")
def model() -> ModelFile:
    return open_model(resolve_model(None))


@pytest.fixture(scope="module")
def prompts(model: ModelFile) -> list[list[int]]:
    tokenizer = build_tokenizer(model.tokenizer_source)
    return [tokenizer.encode(prompt).ids for prompt in PROMPTS]


def log_probabilities(
    model: ModelFile, chip_class: ChipClass, prompts: list[list[int]], answers: list[list[int]] | None = None
) -> tuple[torch.Tensor, list[list[int]]]:
    """[step, prompt, vocabulary] after each token of the answers, by default the likeliest; and the answers."""
    run = engine_run(model, chip_class, block_count=400 * 16 // chip_class.block_tokens)
    sequences = [run.sequence(token_ids, room_tokens=ANSWER_TOKENS) for token_ids in prompts]
    steps = [torch.cat([run.logits([Slice(sequence, sequence.token_count)]) for sequence in sequences])]
    for step in range(ANSWER_TOKENS):
        likeliest = steps[-1].argmax(-1).tolist()
        for number, sequence in enumerate(sequences):
            sequence.output_token_ids.append(likeliest[number] if answers is None else answers[number][step])
        steps.append(run.logits([Slice(sequence, 1) for sequence in sequences]))
    return torch.stack(steps).log_softmax(-1), [sequence.output_token_ids for sequence in sequences]


@pytest.fixture(scope="module")
def reference(model: ModelFile, prompts: list[list[int]]) -> tuple[torch.Tensor, list[list[int]]]:
    return log_probabilities(model, F32, prompts)


@pytest.mark.parametrize(
    ("chip_class", "mean_kl", "largest_difference"),
    [
        (chip_class_named("cpu-f32-kv8"), 0.002, 0.3),
        (replace(F32, kv_dtype=KvDtype.FLOAT16, block_tokens=64), 2e-6, 0.01),
        (replace(F32, kv_dtype=KvDtype.FLOAT8_E4M3, block_tokens=64), 0.02, 1.0),
    ],
    ids=lambda one: one.kv_dtype.value if isinstance(one, ChipClass) else None,
)
def test_predictions_stay_near_those_of_float32(model, prompts, reference, chip_class, mean_kl, largest_difference):
    expected, answers = reference

    found, _ = log_probabilities(model, chip_class, prompts, answers)

    divergence = (expected.exp() * (expected - found)).sum(-1)
    likeliest = expected.argmax(-1, keepdim=True)
    difference = (found.gather(-1, likeliest) - expected.gather(-1, likeliest)).abs().max()
    assert divergence.mean() <= mean_kl
    assert difference <= largest_difference
