"""One whole mesh for all tests of this folder: starting it costs seconds."""

from collections.abc import Iterator

import pytest

from forebay.client import Client
from forebay.testing.mesh import RunningMesh, running_mesh


@pytest.fixture(scope="session")
def mesh() -> Iterator[RunningMesh]:
    with running_mesh() as running:
        yield running


@pytest.fixture
def client(mesh: RunningMesh) -> Iterator[Client]:
    with Client(mesh.router_address) as connected:
        yield connected
