"""Settings that prefill and decode workers share."""

from pydantic import Field

from forebay import ports
from forebay.chips.chip_class import DEFAULT_NAME
from forebay.engine.scheduler import DEFAULT_CHUNK_TOKENS, DEFAULT_MAX_SEQUENCES, DEFAULT_STEP_SLO_S
from forebay.rpc.settings import ServiceSettings
from forebay.worker.places import DEFAULT_QUEUE_LENGTH


class WorkerSettings(ServiceSettings):
    """What a worker takes beside what every service takes."""

    model: str | None = Field(None, description="GGUF file or Hugging Face folder; default: the default model")
    chip_class: str = Field(DEFAULT_NAME, description="chip class: device, precision and KV format")
    kvcache: str = Field(ports.default_address(ports.KVCACHE), description="KV-cache service of this node, HOST:PORT")
    max_sequences: int = Field(DEFAULT_MAX_SEQUENCES, ge=1, le=4096, description="most sequences in one batch")
    chunk_tokens: int = Field(DEFAULT_CHUNK_TOKENS, ge=1, le=65_536, description="most prompt tokens of one step")
    step_slo_ms: float = Field(
        DEFAULT_STEP_SLO_S * 1e3,
        gt=0,
        le=3_600_000,
        description="milliseconds a step that generates should take at most; smaller prompt chunks keep it so",
    )
    threads: int | None = Field(None, ge=1, le=1024, description="most cores a step may use; default: all")
    queue_length: int = Field(DEFAULT_QUEUE_LENGTH, ge=0, description="most sequences that wait; more are refused")
    blocks_wait_s: float = Field(5.0, gt=0, description="seconds a sequence waits for KV blocks before it is refused")
