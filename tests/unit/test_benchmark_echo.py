"""The engine behind which routers are measured."""

from forebay.engine.types import SamplingParams, Sequence, Slice
from scripts.benchmarks.echo_worker import EchoEngine


def test_a_sequence_says_its_prompt_again_and_again() -> None:
    sequence = Sequence("s", [3, 1, 2], SamplingParams(max_tokens=5, seed=0), block_table=[0])
    for _ in range(5):
        (sampled,) = EchoEngine().step([Slice(sequence, sequence.pending_tokens)])
        sequence.computed_tokens = sequence.token_count
        assert sampled.token_id is not None
        sequence.output_token_ids.append(sampled.token_id)
    assert sequence.output_token_ids == [3, 1, 2, 3, 1]


def test_a_chunk_that_ends_inside_the_prompt_says_nothing() -> None:
    sequence = Sequence("s", [3, 1, 2], SamplingParams(max_tokens=5, seed=0), block_table=[0])
    assert EchoEngine().step([Slice(sequence, 2)]) == []
