"""WorkerService: what a worker of either role can be told."""

import asyncio

from forebay.v1 import worker_pb2, worker_pb2_grpc
from forebay.worker.sequence_runner import SequenceRunner

SERVICE_NAME = worker_pb2.DESCRIPTOR.services_by_name["WorkerService"].full_name


class WorkerControl(worker_pb2_grpc.WorkerServiceServicer):
    """Sets `stop`, as a signal does."""

    def __init__(self, runner: SequenceRunner, stop: asyncio.Event) -> None:
        self._runner = runner
        self._stop = stop

    async def Drain(  # noqa: N802  # gRPC's name
        self, request: worker_pb2.DrainRequest, context: object
    ) -> worker_pb2.DrainResponse:
        self._stop.set()
        return worker_pb2.DrainResponse(running_sequences=len(self._runner.sequences))
