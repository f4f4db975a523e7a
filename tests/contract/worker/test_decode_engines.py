"""Prefill and decode with the real engines and a tiny model: SPLIT, LOCAL, RESUME and failover give the same bits."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from forebay.chips import chip_class_named
from forebay.decode.servicer import DecodeServicer
from forebay.engine.scheduler import Limits
from forebay.kernels.cpu.library import load_library
from forebay.prefill.servicer import PrefillServicer
from forebay.testing.attached_worker import attached_worker, served
from forebay.testing.tiny_models import write_tiny_model
from forebay.v1 import common_pb2, decode_pb2, decode_pb2_grpc, prefill_pb2, prefill_pb2_grpc
from forebay.worker.engine_loader import EngineLoader
from forebay.worker.request_check import ServedModel

TOKENS = 24


class Node:
    """One node with a prefill and a decode worker."""

    def __init__(self, kvcache: Any, prefill: Any, decode: Any, model: ServedModel) -> None:
        self.kvcache, self.prefill, self.decode = kvcache, prefill, decode
        self.model = model

    def prompt(self, token_count: int) -> list[int]:
        return [(7 * place * place + 3 * place + 1) % self.model.vocabulary_size for place in range(token_count)]

    async def local(self, prompt: list[int], tenant: str, emitted: list[int] | None = None, **more: Any) -> Any:
        """Tokens, log-probabilities and summary of one sequence on a stream of its own."""
        call = self.decode.Decode()
        start = decode_pb2.StartSequence(
            request_id=f"{tenant}-{len(prompt)}",
            prompt_token_ids=prompt,
            emitted_token_ids=emitted or [],
            tenant=tenant,
            sampling=SAMPLING,
            **more,
        )
        await call.write(decode_pb2.DecodeRequest(start=start))
        await call.done_writing()
        outputs = [output async for response in call for output in response.outputs]
        assert not outputs[-1].error.reason
        tokens = [token for output in outputs for token in output.token_ids]
        logprobs = [one.chosen.logprob for output in outputs for one in output.logprobs]
        return tokens, logprobs, outputs[-1].summary

    async def split(self, prompt: list[int], tenant: str) -> Any:
        """The same through the prefill worker."""
        request = prefill_pb2.PrefillRequest(
            request_id=f"{tenant}-{len(prompt)}", token_ids=prompt, tenant=tenant, sampling=SAMPLING
        )
        first, last = [one async for one in self.prefill.Prefill(request)]
        token = first.first_token
        tokens, logprobs, summary = await self.local(prompt, tenant, [token.token_id], manifest=last.manifest)
        return [token.token_id, *tokens], [token.logprobs.chosen.logprob, *logprobs], summary


SAMPLING = common_pb2.SamplingParams(
    max_tokens=TOKENS,
    temperature=1.0,
    seed=11,
    logprobs=2,
    ignore_eos=True,
    repetition_penalty=1.2,
    presence_penalty=0.3,
)


@pytest.fixture(params=["cpu-bf16", "cpu-bandwidth", "cpu-f32-kv8"])
async def node(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    start_kvcache: Callable[..., Any],
) -> AsyncIterator[Node]:
    load_library()  # compiled into the cache that all runs share, before it is another one
    monkeypatch.setenv("FOREBAY_CACHE", str(tmp_path / "cache"))
    loader = EngineLoader(str(write_tiny_model(tmp_path / "tiny")), chip_class_named(request.param))
    model = loader.served_model
    limits = Limits(model.layout.block_tokens, model.context_tokens, chunk_tokens=64, max_sequences=4)
    async with AsyncExitStack() as stack:
        kvcache = await stack.enter_async_context(
            start_kvcache(layout=model.layout, model_digest=model.digest, arithmetic=model.arithmetic)
        )
        prefill, decode = [
            await stack.enter_async_context(
                attached_worker(kvcache.address, limits, model=model, make_engine=loader.make_engine)
            )
            for _ in range(2)
        ]
        prefill_channel = await stack.enter_async_context(
            served(
                prefill_pb2_grpc.add_PrefillServiceServicer_to_server,
                PrefillServicer(prefill.runner, model, kvcache.node_id, kvcache.address),
                "forebay.v1.PrefillService",
            )
        )
        decode_channel = await stack.enter_async_context(
            served(
                decode_pb2_grpc.add_DecodeServiceServicer_to_server,
                DecodeServicer(decode.runner, model, kvcache.node_id),
                "forebay.v1.DecodeService",
            )
        )
        yield Node(
            kvcache,
            prefill_pb2_grpc.PrefillServiceStub(prefill_channel),
            decode_pb2_grpc.DecodeServiceStub(decode_channel),
            model,
        )


@pytest.mark.parametrize("token_count", [1, 31, 32, 33, 150])
async def test_every_way_gives_the_same_bits(node: Node, token_count: int) -> None:
    prompt = node.prompt(token_count)
    tokens, logprobs, summary = await node.local(prompt, "local")
    assert len(tokens) == TOKENS
    assert summary.computed_prompt_tokens == token_count
    split_tokens, split_logprobs, summary = await node.split(prompt, "split")
    assert (split_tokens, split_logprobs) == (tokens, logprobs)
    assert (summary.computed_prompt_tokens, summary.transfer_bytes) == (0, 0)
    assert node.kvcache.stats().take_overs == 1
    resumed_tokens, resumed_logprobs, summary = await node.local(prompt, "local")
    assert (resumed_tokens, resumed_logprobs) == (tokens, logprobs)
    block_tokens = node.model.layout.block_tokens
    assert summary.cached_tokens == (token_count - 1) // block_tokens * block_tokens
    rest_tokens, rest_logprobs, _ = await node.local(prompt, "elsewhere", tokens[:9])
    assert (rest_tokens, rest_logprobs) == (tokens[9:], logprobs[9:])
