"""Names of all metrics and of their own attribute: stable, and documented in docs/telemetry.md like those of spans."""

STEP_COUNT = "forebay.step.count"
STEP_BUSY_S = "forebay.step.busy_s"
STEP_OPERATIONS = "forebay.step.operations"
STEP_MOVED_BYTES = "forebay.step.moved_bytes"
STEP_FLOPS_UTILIZATION = "forebay.step.flops_utilization"
STEP_BANDWIDTH_UTILIZATION = "forebay.step.bandwidth_utilization"
PAUSE_COUNT = "forebay.pause.count"
PAUSE_S = "forebay.pause.duration_s"

PHASE = "forebay.phase"
