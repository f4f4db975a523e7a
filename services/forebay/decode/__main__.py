"""`python -m forebay.decode`: generates tokens until SIGTERM."""

import asyncio

from forebay.decode.config import DecodeSettings
from forebay.decode.kind import KIND
from forebay.rpc.service import run
from forebay.telemetry import spans
from forebay.worker.service import serve_worker


async def serve(settings: DecodeSettings, stop: asyncio.Event) -> None:
    """Builds the worker and serves."""
    await serve_worker(KIND, settings, stop)


if __name__ == "__main__":
    run("decode", DecodeSettings, serve, lambda settings: {spans.CHIP_CLASS: settings.chip_class})
