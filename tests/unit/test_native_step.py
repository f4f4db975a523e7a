"""A whole native step over drawn shapes, chunks and company: the logits of the torch engine in float32."""

import random
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.chips import chip_class_named
from forebay.engine.types import Slice
from forebay.kernels.cpu.library import load_library
from forebay.models.model_file import open_model
from forebay.testing.engine_runs import engine_run
from forebay.testing.native_runs import EXACT, native_run
from forebay.testing.tiny_models import TINY_LLAMA, write_tiny_model

load_library()  # before a test points FOREBAY_CACHE elsewhere: it is compiled into the cache that all runs share
MOST_TOKENS = 330  # more than a segment of attention


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOREBAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@st.composite
def configs(draw):
    """Decoders of every family, with sizes that fill neither lanes, groups nor tiles."""
    kv_heads = draw(st.sampled_from([1, 2, 3]))
    hidden = draw(st.sampled_from([8, 33, 72, 100]))
    return TINY_LLAMA | {
        "architectures": [draw(st.sampled_from(["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"]))],
        "num_key_value_heads": kv_heads,
        "num_attention_heads": kv_heads * draw(st.sampled_from([1, 2, 3, 5, 7])),
        "head_dim": draw(st.sampled_from([16, 32, 48, 64, 80, 96, 128, 160, 256])),
        "hidden_size": hidden,
        "intermediate_size": draw(st.sampled_from([1, 31, 65, 172])),
        "vocab_size": draw(st.sampled_from([5, 16, 17, 127, 300])),
        "tie_word_embeddings": draw(st.booleans()),
    }


def native_logits(run, subject, chunk, others, dice):
    """The subject's last logits, computed chunk by chunk while others come and go, over blocks full of NaN."""
    for block in subject.block_table[subject.computed_tokens // run.arena.layout.block_tokens :]:
        run.arena.fill(block, 0xFF)
    while True:
        slices = [Slice(subject, min(chunk, subject.pending_tokens))]
        slices += [Slice(one, min(dice.choice([1, 5, 20]), one.pending_tokens)) for one in others if one.pending_tokens]
        dice.shuffle(slices)
        sampling = [part.sequence for part in slices if part.token_count == part.sequence.pending_tokens]
        logits = run.logits(slices)
        if not subject.pending_tokens:
            return logits[sampling.index(subject)]


@dataclass(frozen=True, slots=True)
class Case:
    """What is computed and how; chunks are of one prompt, whose continuation is computed over its cached blocks."""

    config: dict[str, object]
    seed: int
    block_tokens: int
    length: int
    more_tokens: int
    chunk: int
    other_lengths: list[int]
    threads: int


cases = st.builds(
    Case,
    config=configs(),
    seed=st.integers(0, 2**16),
    block_tokens=st.sampled_from([16, 32, 64, 256]),
    length=st.integers(1, MOST_TOKENS),
    more_tokens=st.integers(1, 40),
    chunk=st.sampled_from([1, 7, 32, MOST_TOKENS]),
    other_lengths=st.lists(st.integers(1, 90), max_size=4),
    threads=st.sampled_from([1, 2]),
)


def follower_of(run, subject, prompt):
    """A sequence with the same beginning, over the full blocks of the one that computed it."""
    block_tokens = run.arena.layout.block_tokens
    shared = subject.computed_tokens // block_tokens
    follower = run.sequence(prompt[shared * block_tokens :])
    follower.prompt_token_ids = prompt
    follower.block_table = subject.block_table[:shared] + follower.block_table
    follower.computed_tokens = shared * block_tokens
    return follower


@settings(deadline=None)
@given(case=cases)
def test_a_step_gives_the_logits_of_float32_on_torch(case):
    dice = random.Random(case.seed)
    token_ids = range(case.config["vocab_size"])
    prompt = dice.choices(token_ids, k=case.length + case.more_tokens)
    with tempfile.TemporaryDirectory() as folder:
        model = open_model(write_tiny_model(Path(folder), case.config, case.seed))
        reference = engine_run(model, chip_class_named("cpu-f32"), block_count=40)
        exact = replace(EXACT, threads=2, block_tokens=case.block_tokens)
        run = native_run(model, 12 + 1200 // case.block_tokens, exact)
    run.engine.use_threads(case.threads)
    ends = (case.length, len(prompt))
    expected = [np.asarray(reference.logits([Slice(reference.sequence(prompt[:end]), end)]))[0] for end in ends]

    subject = run.sequence(prompt[: case.length])
    others = [run.sequence(dice.choices(token_ids, k=length)) for length in case.other_lengths]
    found = native_logits(run, subject, case.chunk, others, dice)
    later = native_logits(run, follower_of(run, subject, prompt), case.chunk, [], dice)

    np.testing.assert_allclose(found, expected[0], atol=2e-4, rtol=2e-4)
    np.testing.assert_allclose(later, expected[1], atol=2e-4, rtol=2e-4)
