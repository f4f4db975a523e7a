"""What makes a worker a decode worker."""

from typing import Final

from forebay.decode.servicer import DecodeServicer
from forebay.role import Role
from forebay.v1 import decode_pb2, decode_pb2_grpc
from forebay.worker.service import WorkerKind

KIND: Final = WorkerKind(
    role=Role.DECODE,
    service_name=decode_pb2.DESCRIPTOR.services_by_name["DecodeService"].full_name,
    method="Decode",
    span_name=None,  # one stream carries many requests, each with its own span
    register=decode_pb2_grpc.add_DecodeServiceServicer_to_server,
    make_servicer=lambda worker: DecodeServicer(worker.runner, worker.model, worker.node_id),
)
