"""The native engine: equal to transformers where it computes exactly, close to float32 where it serves; refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

from forebay.chips import chip_class_named
from forebay.engine.native_arena import NativeArena
from forebay.engine.native_load import load_native_engine, native_layout
from forebay.engine.types import SamplingParams, Slice
from forebay.errors import KvExhaustedError, LayoutMismatchError, NumericFailureError, StartError, TokenOutOfRangeError
from forebay.kernels.cpu.library import load_library
from forebay.kernels.cpu.packed_model import WeightPolicy
from forebay.kv.layout import AxisOrder, KvDtype
from forebay.models.default_model import resolve_model
from forebay.models.model_file import open_model
from forebay.testing.engine_runs import engine_run
from forebay.testing.native_runs import EXACT, NativeSettings, native_run
from forebay.testing.tiny_models import write_tiny_model

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 72,
    "intermediate_size": 172,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
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
    "llama": (transformers.LlamaConfig, {"head_dim": 64}),
    "llama-tied": (transformers.LlamaConfig, {"tie_word_embeddings": True}),
    "llama-one-kv-head": (transformers.LlamaConfig, {"head_dim": 80, "num_key_value_heads": 1}),
    "llama-no-groups": (transformers.LlamaConfig, {"num_key_value_heads": 6}),
    "llama-rope-llama3": (transformers.LlamaConfig, {"rope_parameters": LLAMA3_ROPE}),
    "qwen2": (transformers.Qwen2Config, {"hidden_size": 96}),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 128, "num_key_value_heads": 3}),
    "mistral": (transformers.MistralConfig, {"head_dim": 96, "sliding_window": None}),
}
load_library()  # before a test points FOREBAY_CACHE elsewhere: it is compiled into the cache that all runs share
PROMPT = [(7 * position * position + 3) % 300 for position in range(290)]


def write_reference(family, folder):
    """transformers' model of that family, every parameter random so that no bias is 0 and no norm is 1."""
    make_config, changes = FAMILIES[family]
    torch.manual_seed(sorted(FAMILIES).index(family))
    reference = transformers.AutoModelForCausalLM.from_config(make_config(**(SHAPE | changes)))
    for name, parameter in reference.named_parameters():
        if name.endswith(("bias", "norm.weight")):
            torch.nn.init.normal_(parameter, 1.0 if name.endswith("norm.weight") else 0.0, 0.3)
    reference.save_pretrained(folder)
    return reference.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_logits_are_those_of_transformers(family, tmp_path, monkeypatch):
    monkeypatch.setenv("FOREBAY_CACHE", str(tmp_path))
    reference = write_reference(family, tmp_path / "model")
    run = native_run(open_model(tmp_path / "model"), block_count=12, settings=EXACT)
    with torch.inference_mode():
        expected = reference(torch.tensor([PROMPT])).logits[0].numpy()

    sequence = run.sequence(PROMPT[:1], room_tokens=len(PROMPT))
    ours = [run.logits([Slice(sequence, 1)])]
    ends = (2, 40, 41, 120, 290)  # chunks of several sizes, across blocks and segments
    for end in ends:
        sequence.prompt_token_ids += PROMPT[sequence.token_count : end]
        ours.append(run.logits([Slice(sequence, end - sequence.computed_tokens)]))

    rows = [length - 1 for length in (1, *ends)]
    np.testing.assert_allclose(np.concatenate(ours), expected[rows], atol=1e-3, rtol=0)
    assert expected[rows].std() > 0.5, "the logits are too flat to tell anything"


@pytest.fixture(scope="module")
def smollm2():
    return open_model(resolve_model(None))


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.mark.parametrize(("activation_bits", "most_divergence"), [(8, 0.0035), (16, 0.0003)])
def test_four_bit_weights_stay_close_to_float32(smollm2, activation_bits, most_divergence):
    """Teacher-forced over the model's own text: one prompt of ids, then what the float32 engine chooses."""
    reference = engine_run(smollm2, chip_class_named("cpu-f32"), block_count=12)
    ours = native_run(smollm2, 12, NativeSettings(activation_bits=activation_bits))
    prompt = [504, 3575, 282, 4649, 314, 253, 1038, 30, 198, 1780, 260, 4531, 28, 665, 523, 411]
    sequences = [run.sequence(prompt, room_tokens=170) for run in (reference, ours)]
    expected, found, count = [], [], len(prompt)
    for _ in range(160):
        expected.append(reference.logits([Slice(sequences[0], count)])[0].numpy())
        found.append(ours.logits([Slice(sequences[1], count)])[0])
        for sequence in sequences:
            sequence.output_token_ids.append(int(expected[-1].argmax()))
        count = 1
    p, q = log_softmax(np.array(expected)), log_softmax(np.array(found))
    divergence = (np.exp(p) * (p - q)).sum(-1)

    assert divergence.mean() <= most_divergence
    assert (p.argmax(-1) == q.argmax(-1)).mean() >= 0.95


def test_everything_in_float32_is_the_float32_engine(tmp_path, monkeypatch):
    model = open_model(write_tiny_model(tmp_path / "model"))
    monkeypatch.setenv("FOREBAY_CACHE", str(tmp_path / "cache"))
    prompt = list(range(1, 60))
    runs = [engine_run(model, chip_class_named("cpu-f32"), 8), native_run(model, 8, EXACT)]

    logits = [np.asarray(run.logits([Slice(run.sequence(prompt), len(prompt))])) for run in runs]

    np.testing.assert_allclose(logits[1], logits[0], atol=1e-5)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOREBAY_CACHE", str(folder / "cache"))
        yield native_run(open_model(write_tiny_model(folder / "model")), block_count=64)


@pytest.mark.parametrize("policy", WeightPolicy)
def test_all_policies_serve_the_tiny_model_alike(policy, tmp_path, monkeypatch):
    monkeypatch.setenv("FOREBAY_CACHE", str(tmp_path / "cache"))
    model = open_model(write_tiny_model(tmp_path / "model"))
    exact = native_run(model, 8, EXACT)
    run = native_run(model, 8, NativeSettings(policy))

    expected, found = (one.logits([Slice(one.sequence(range(40)), 40)])[0] for one in (exact, run))

    assert np.corrcoef(expected, found)[0, 1] > 0.998


def test_greedy_and_sampled_rows_share_a_step(tiny):
    tiny.next_block = 1
    greedy = tiny.sequence(range(10))
    drawn = [
        tiny.sequence(range(10), sampling=SamplingParams(max_tokens=5, seed=seed, temperature=1.0, logprobs=2))
        for seed in range(20)
    ]

    outcomes = tiny.step([Slice(one, 10) for one in (greedy, *drawn)])

    best = outcomes[0].token_id
    assert outcomes[0].logprobs is None
    assert {len(outcome.logprobs.alternatives) for outcome in outcomes[1:]} == {2}
    assert {outcome.logprobs.alternatives[0][0] for outcome in outcomes[1:]} == {best}
    assert len({outcome.token_id for outcome in outcomes[1:]}) > 3


def test_slices_that_do_not_end_their_sequence_sample_nothing(tiny):
    tiny.next_block = 1
    half, whole = tiny.sequence(range(30)), tiny.sequence(range(12))

    outcomes = tiny.step([Slice(half, 20), Slice(whole, 12)])

    assert [outcome.sequence_id for outcome in outcomes] == [whole.sequence_id]
    assert tiny.step([]) == []


def test_a_sequence_with_nan_fails_alone_and_its_blocks_serve_again(tiny):
    tiny.next_block = 1
    poisoned, healthy = tiny.sequence(range(90)), tiny.sequence(range(40))
    expected = tiny.logits([Slice(poisoned, 89), Slice(healthy, 40)])[0]
    tiny.arena.fill(poisoned.block_table[0], 0xFF)

    outcomes = tiny.engine.step([Slice(poisoned, 1), Slice(replace_progress(healthy, 39), 1)])

    assert isinstance(outcomes[0].error, NumericFailureError)
    assert outcomes[1].token_id == int(expected.argmax())
    for block in poisoned.block_table:
        tiny.arena.fill(block, 0xFF)
    tiny.next_block = 1
    np.testing.assert_array_equal(tiny.logits([Slice(tiny.sequence(range(40)), 40)])[0], expected)


def replace_progress(sequence, computed_tokens):
    sequence.computed_tokens = computed_tokens
    return sequence


@pytest.mark.parametrize("token_id", [-1, 256, 1 << 20])
def test_a_token_that_the_model_does_not_have_is_refused(tiny, token_id):
    tiny.next_block = 1

    with pytest.raises(TokenOutOfRangeError):
        tiny.step([Slice(tiny.sequence([1, token_id]), 2)])


def test_a_table_too_short_or_outside_the_arena_is_refused(tiny):
    tiny.next_block = 1
    short, stray = tiny.sequence(range(40)), tiny.sequence(range(40))
    short.block_table.pop()
    stray.block_table[1] = 64

    with pytest.raises(KvExhaustedError):
        tiny.step([Slice(short, 40)])
    with pytest.raises(LayoutMismatchError, match="below 64"):
        tiny.step([Slice(stray, 40)])


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"order": AxisOrder.LAYER_KV_HEAD_TOKEN}, "layout.order"),
        ({"dtype": KvDtype.FLOAT16}, "layout.dtype"),
        ({"block_tokens": 24}, "layout.block_tokens"),
        ({"block_tokens": 512}, "layout.block_tokens"),
        ({"head_dim": 24}, "layout.head_dim"),
        ({"layers": 3}, "layout"),
    ],
)
def test_an_arena_that_does_not_suit_is_refused(smollm2, changes, field):
    layout = replace(native_layout(smollm2.config), **changes)

    with pytest.raises(LayoutMismatchError) as refused:
        load_native_engine(smollm2, NativeArena(bytearray(4 * layout.block_bytes), layout, 4))
    assert refused.value.field == field


def test_a_buffer_too_small_or_read_only_is_refused(smollm2):
    layout = native_layout(smollm2.config)

    with pytest.raises(LayoutMismatchError, match="do not hold 4 blocks"):
        NativeArena(bytearray(4 * layout.block_bytes - 1), layout, 4)
    with pytest.raises(LayoutMismatchError, match="not writable"):
        NativeArena(memoryview(bytes(layout.block_bytes)), layout, 1)


def test_a_sliding_window_is_refused(smollm2):
    layout = native_layout(smollm2.config)
    arena = NativeArena(bytearray(layout.block_bytes), layout, 1)
    model = open_model(smollm2.path)
    model.config = replace(smollm2.config, sliding_window=128)

    with pytest.raises(StartError, match="sliding window of 128"):
        load_native_engine(model, arena)


def test_a_step_of_sixteen_needs_little_memory_and_reports_its_phases(smollm2):
    run = native_run(smollm2, block_count=18)
    run.engine.take_phase_seconds()
    run.logits([Slice(run.sequence([one]), 1) for one in range(16)])

    assert 0 < run.engine.workspace_bytes <= 64 << 20
    seconds = run.engine.take_phase_seconds()
    assert all(seconds[name] > 0 for name in ("norm", "qkv", "attention", "output", "gate_up", "down", "head"))
    assert not any(run.engine.take_phase_seconds().values())
