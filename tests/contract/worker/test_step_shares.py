"""Spans of requests tell how near the engine's steps came to what the machine can do."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from forebay.chips import chip_class_named
from forebay.decode.servicer import DecodeServicer
from forebay.engine.peaks_file import learn_peaks
from forebay.engine.scheduler import Limits
from forebay.kernels.cpu.library import load_library
from forebay.prefill.servicer import PrefillServicer
from forebay.telemetry import spans
from forebay.testing.attached_worker import attached_worker, served
from forebay.testing.tiny_models import write_tiny_model
from forebay.testing.waiting import until
from forebay.v1 import common_pb2, decode_pb2, decode_pb2_grpc, prefill_pb2, prefill_pb2_grpc
from forebay.worker.engine_loader import EngineLoader

SAMPLING = common_pb2.SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
SHARES = (spans.FLOPS_UTILIZATION, spans.BANDWIDTH_UTILIZATION)
TRACE = ("traceparent", f"00-{'a' * 32}-{'b' * 16}-01")
RATES = (spans.OPERATION_RATE, spans.MEMORY_RATE)


@pytest.mark.parametrize("name", ["cpu-bandwidth", "cpu-bf16"])
async def test_requests_carry_the_shares_of_their_steps(
    name: str,
    exporter: InMemorySpanExporter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    start_kvcache: Callable[..., Any],
) -> None:
    load_library()  # compiled into the cache that all runs share, before it is another one
    monkeypatch.setenv("FOREBAY_CACHE", str(tmp_path / "cache"))
    # As for a worker: without native kernels there is nothing to measure peaks with.
    peaks = learn_peaks(lambda: True) if name == "cpu-bandwidth" else None
    loader = EngineLoader(str(write_tiny_model(tmp_path / "tiny")), chip_class_named(name))
    model = loader.served_model
    limits = Limits(model.layout.block_tokens, model.context_tokens, chunk_tokens=64, max_sequences=4)
    async with AsyncExitStack() as stack:
        served_kv = start_kvcache(layout=model.layout, model_digest=model.digest, arithmetic=model.arithmetic)
        kvcache = await stack.enter_async_context(served_kv)
        worker = await stack.enter_async_context(
            attached_worker(kvcache.address, limits, model=model, make_engine=loader.make_engine, peaks=peaks)
        )
        prompts = prefill_pb2_grpc.PrefillServiceStub(
            await stack.enter_async_context(
                served(
                    prefill_pb2_grpc.add_PrefillServiceServicer_to_server,
                    PrefillServicer(worker.runner, model, kvcache.node_id, kvcache.address),
                    "forebay.v1.PrefillService",
                )
            )
        )
        generating = decode_pb2_grpc.DecodeServiceStub(
            await stack.enter_async_context(
                served(
                    decode_pb2_grpc.add_DecodeServiceServicer_to_server,
                    DecodeServicer(worker.runner, model, kvcache.node_id),
                    "forebay.v1.DecodeService",
                )
            )
        )
        request = prefill_pb2.PrefillRequest(request_id="p", token_ids=range(3, 150), sampling=SAMPLING)
        async for _ in prompts.Prefill(request, metadata=(TRACE,)):
            pass
        call = generating.Decode()
        start = decode_pb2.StartSequence(request_id="d", prompt_token_ids=range(3, 150), sampling=SAMPLING)
        await call.write(decode_pb2.DecodeRequest(start=start))
        await call.done_writing()
        async for _ in call:
            pass
        await until(lambda: {"p", "d"} <= found(exporter).keys())
    for attributes in found(exporter).values():
        assert all(attributes[rate] > 0 for rate in RATES)
        if peaks is None:
            assert not attributes.keys() & set(SHARES)
        else:
            assert all(0 < attributes[share] < 1.5 for share in SHARES)


def found(exporter: InMemorySpanExporter) -> dict[str, Any]:
    """Attributes of the requests' spans by request id."""
    return {
        str(one.attributes[spans.REQUEST_ID]): one.attributes
        for one in exporter.get_finished_spans()
        if one.attributes and spans.REQUEST_ID in one.attributes
    }
