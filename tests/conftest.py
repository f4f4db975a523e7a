"""What holds for all tests, and what several folders share."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay.testing.nats_server import NatsServer
from forebay.testing.tiny_models import write_tiny_model

# A runner started in the background may ignore Ctrl-C, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of some kilobytes."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="module")
def nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real nats-server."""
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    yield server.url
    server.stop()
