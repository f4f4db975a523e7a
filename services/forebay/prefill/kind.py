"""What makes a worker a prefill worker."""

from typing import Final

from forebay.prefill.servicer import PrefillServicer
from forebay.role import Role
from forebay.telemetry import spans
from forebay.v1 import prefill_pb2, prefill_pb2_grpc
from forebay.worker.service import WorkerKind

KIND: Final = WorkerKind(
    role=Role.PREFILL,
    service_name=prefill_pb2.DESCRIPTOR.services_by_name["PrefillService"].full_name,
    method="Prefill",
    span_name=spans.PREFILL,
    register=prefill_pb2_grpc.add_PrefillServiceServicer_to_server,
    make_servicer=lambda worker: PrefillServicer(worker.runner, worker.model, worker.node_id, worker.kvcache_address),
)
