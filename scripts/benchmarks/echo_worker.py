"""`python -m scripts.benchmarks.echo_worker`: the decode service over an engine that says its prompt again, at once.

Everything but the engine is the service's own: its stream, its scheduler, its rights to KV blocks. Measures nothing.
"""

import asyncio
import time
from typing import Final

from pydantic import Field

from forebay.chips import chip_class_named
from forebay.decode.config import DecodeSettings
from forebay.decode.kind import KIND
from forebay.engine.types import Engine, Sampled, Sequence, Slice
from forebay.rpc.service import run
from forebay.testing.fake_engine import MODEL_COST
from forebay.worker.attachment import Attachment
from forebay.worker.engine_loader import EngineLoader
from forebay.worker.service import serve_worker


class EchoSettings(DecodeSettings):
    """A decode worker without a model's work."""

    step_ms: float = Field(0.0, ge=0, le=1_000, description="milliseconds that a step takes")


class EchoEngine:
    """Writes no KV. A step takes step_s seconds, and no core."""

    model_cost: Final = MODEL_COST

    def __init__(self, step_s: float = 0.0) -> None:
        self._step_s = step_s

    def use_threads(self, threads: int) -> None:
        """As Engine.use_threads; it has no use for any."""

    def step(self, slices: list[Slice]) -> list[Sampled]:
        """As Engine.step."""
        if self._step_s:
            time.sleep(self._step_s)
        return [
            Sampled(part.sequence.sequence_id, _echo(part.sequence))
            for part in slices
            if part.sequence.computed_tokens + part.token_count == part.sequence.token_count
        ]


def _echo(sequence: Sequence) -> int:
    prompt = sequence.prompt_token_ids
    return prompt[len(sequence.output_token_ids) % len(prompt)]


class EchoLoader(EngineLoader):
    """Opens the model for its layout and its names; no weights are loaded."""

    def __init__(self, settings: EchoSettings) -> None:
        super().__init__(settings.model, chip_class_named(settings.chip_class))
        self._step_s = settings.step_ms / 1e3

    def make_engine(self, attachment: Attachment) -> Engine:
        """As EngineLoader.make_engine."""
        return EchoEngine(self._step_s)


async def serve(settings: EchoSettings, stop: asyncio.Event) -> None:
    """Builds the worker and serves."""
    await serve_worker(KIND, settings, stop, EchoLoader)


if __name__ == "__main__":
    run("decode", EchoSettings, serve)
