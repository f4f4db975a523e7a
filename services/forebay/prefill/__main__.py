"""`python -m forebay.prefill`: serves prompts until SIGTERM."""

import asyncio

from forebay.prefill.config import PrefillSettings
from forebay.prefill.kind import KIND
from forebay.rpc.service import run
from forebay.telemetry import spans
from forebay.worker.service import serve_worker


async def serve(settings: PrefillSettings, stop: asyncio.Event) -> None:
    """Builds the worker and serves."""
    await serve_worker(KIND, settings, stop)


if __name__ == "__main__":
    run("prefill", PrefillSettings, serve, lambda settings: {spans.CHIP_CLASS: settings.chip_class})
