"""Names of all spans and attributes: stable, and documented in docs/telemetry.md, which a test compares with this file.

GenAI semantic conventions where they exist, `forebay.*` for the rest. Units stand at the end of a name.
"""

# Spans.
GENERATE = "generate"
TOKENIZE = "tokenize"
ADMIT = "admit"
PLAN = "plan"
FAILOVER = "failover"
PREFILL = "prefill"
KV_ATTACH = "kv.attach"
KV_ACQUIRE = "kv.acquire"
KV_EXTEND = "kv.extend"
KV_SEAL = "kv.seal"
KV_TRANSFER = "kv.transfer"
DECODE = "decode"
DETOKENIZE = "detokenize"

# Attributes of the conventions.
OPERATION_NAME = "gen_ai.operation.name"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
FINISH_REASONS = "gen_ai.response.finish_reasons"
ERROR_TYPE = "error.type"
RPC_SYSTEM = "rpc.system"
RPC_METHOD = "rpc.method"
RPC_STATUS_CODE = "rpc.grpc.status_code"

# Who did it.
NODE_ID = "forebay.node_id"
WORKER_ID = "forebay.worker_id"
CHIP_CLASS = "forebay.chip_class"

# The request and its plan.
REQUEST_ID = "forebay.request_id"
QOS_TIER = "forebay.qos_tier"
MODE = "forebay.mode"
PLAN_REASON = "forebay.plan.reason"
PREFILL_WORKER_ID = "forebay.plan.prefill_worker_id"
DECODE_WORKER_ID = "forebay.plan.decode_worker_id"
PLAN_TTFT_S = "forebay.plan.ttft_s"
PLAN_TPOT_S = "forebay.plan.time_per_output_token_s"
PLAN_ENERGY_JOULES = "forebay.plan.energy_joules"
PLAN_COST_USD = "forebay.plan.cost_usd"
PLAN_REJECTED = "forebay.plan.rejected"
MATCHED_TOKENS = "forebay.matched_tokens"
LOST_WORKER_ID = "forebay.lost_worker_id"
FAILOVERS = "forebay.failovers"
RESUMED_TOKENS = "forebay.resumed_tokens"

# Tokens, and where they came from.
CACHED_TOKENS = "forebay.cached_tokens"
COMPUTED_TOKENS = "forebay.computed_tokens"
DECODE_STEPS = "forebay.decode_steps"
CHUNKS = "forebay.prefill.chunks"
PAUSES = "forebay.pauses"
PARKS = "forebay.parks"

# Seconds.
QUEUE_S = "forebay.queue_s"
PAUSED_S = "forebay.paused_s"
PREFILL_S = "forebay.prefill_s"
DECODE_S = "forebay.decode_s"
TTFT_S = "forebay.ttft_s"
TRANSFER_S = "forebay.transfer_s"

# How near the steps came to the machine's peaks, and their rates.
FLOPS_UTILIZATION = "forebay.flops_utilization"
BANDWIDTH_UTILIZATION = "forebay.bandwidth_utilization"
OPERATION_RATE = "forebay.operation_rate"
MEMORY_RATE = "forebay.memory_rate"
TRANSFER_RATE = "forebay.transfer_rate"

# Blocks and bytes.
KV_BLOCKS = "forebay.kv.blocks"
KV_CACHED_BLOCKS = "forebay.kv.cached_blocks"
KV_COPIED_BYTES = "forebay.kv.copied_bytes"
KV_EPOCH = "forebay.kv.epoch"
KV_SOURCE_NODE_ID = "forebay.kv.source_node_id"
KV_FROM_TIER = "forebay.kv.from_tier"
KV_TO_TIER = "forebay.kv.to_tier"
KV_FROM_LAYOUT = "forebay.kv.from_layout"
KV_TO_LAYOUT = "forebay.kv.to_layout"
TRANSFER_BYTES = "forebay.transfer_bytes"
