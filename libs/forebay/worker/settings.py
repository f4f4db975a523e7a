"""Settings that prefill and decode workers share."""

from pathlib import Path

from pydantic import Field, field_validator

from forebay import ports
from forebay.chips.chip_class import DECODE_DEFAULT
from forebay.engine.scheduler import DEFAULT_MAX_SEQUENCES, DEFAULT_STEP_SLO_S
from forebay.rpc.address import checked_address
from forebay.rpc.settings import ServiceSettings
from forebay.worker.places import DEFAULT_QUEUE_LENGTH
from forebay.worker.step_report import DEFAULT_GATHER_S

CHIP_CLASS_HELP = (
    "device, kernels, precision and KV format: cpu-compute or cpu-bandwidth (native kernels), with -a8 behind it faster"
    " and less exact, with -w8 likewise for models of 16-bit weights; cpu-bf16 (no compiler needed), cpu-f32 (full"
    " precision), cpu-f32-kv8 (with KV of 8 bits)"
)


class WorkerSettings(ServiceSettings):
    """What a worker takes beside what every service takes."""

    model: str | None = Field(None, description="GGUF file or Hugging Face folder; default: the default model")
    chip_class: str = Field(DECODE_DEFAULT, description=CHIP_CLASS_HELP)
    fleet_file: Path | None = Field(
        None, description="YAML file with watts, price and rates of chip classes; default: each class's own"
    )
    kvcache: str = Field(ports.default_address(ports.KVCACHE), description="KV-cache service of this node, HOST:PORT")
    max_sequences: int = Field(DEFAULT_MAX_SEQUENCES, ge=1, le=4096, description="most sequences in one batch")
    chunk_tokens: int | None = Field(
        None, ge=1, le=65_536, description="most prompt tokens of one step; default: the chip class's"
    )
    step_slo_ms: float = Field(
        DEFAULT_STEP_SLO_S * 1e3,
        gt=0,
        le=3_600_000,
        description="milliseconds a step that generates should take at most; smaller prompt chunks keep it so",
    )
    stuck_step_s: float = Field(
        30.0, gt=0, le=3600, description="seconds after which a step that has not ended ends the worker"
    )
    threads: int | None = Field(None, ge=1, le=1024, description="most cores a step may use; default: all")
    gather_ms: float = Field(
        DEFAULT_GATHER_S * 1e3,
        ge=0,
        le=1_000,
        description="milliseconds for which tokens are gathered into one message, up to twice as long with many"
        " sequences; first and last ones go at once",
    )
    queue_length: int = Field(DEFAULT_QUEUE_LENGTH, ge=0, description="most sequences that wait; more are refused")
    blocks_wait_s: float = Field(5.0, gt=0, description="seconds a sequence waits for KV blocks before it is refused")

    @field_validator("kvcache")
    @classmethod
    def _is_kvcache_address(cls, text: str) -> str:
        return checked_address(text)
