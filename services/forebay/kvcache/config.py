"""Settings of a KV-cache service."""

from pathlib import Path

from pydantic import Field

from forebay import ports
from forebay.chips.chip_class import DECODE_DEFAULT
from forebay.kv.ledger import DEFAULT_OFFER_S
from forebay.rpc.settings import ServiceSettings


class KvCacheSettings(ServiceSettings):
    """A node's KV-cache service owns the KV memory and lends it to workers. These are its settings."""

    listen: str = Field(
        ports.default_address(ports.KVCACHE), description="address to serve on, HOST:PORT; port 0 takes any"
    )
    model: Path = Field(description="model whose KV is kept: a GGUF file or a Hugging Face folder")
    chip_class: str = Field(DECODE_DEFAULT, description="chip class of this node's workers: says the format of KV")
    device: str = Field(
        "cpu", description="where blocks lie that workers compute with: cpu (shared memory), cuda:N or hip:N"
    )
    device_bytes: int = Field(512 * 2**20, ge=1, description="memory for blocks that workers compute with")
    host_bytes: int = Field(256 * 2**20, ge=0, description="shared memory for blocks evicted from there; 0: none")
    disk_dir: Path | None = Field(
        None, description="folder of its own for copies of those, kept over restarts; none: no disk tier"
    )
    disk_bytes: int = Field(
        0, ge=0, description="size of the disk tier, taken at once; changing it empties the tier; 0: none"
    )
    disk_wait_s: float = Field(
        0.5, ge=0, le=60, description="most seconds a sequence waits for its prefix to be read from disk"
    )
    kept_after_uses: int = Field(
        2, ge=1, le=100, description="blocks that were used less often are removed, not moved to a lower tier"
    )
    free_blocks: int = Field(
        0, ge=0, description="device blocks kept free, so that no request waits while others are moved to a lower tier"
    )
    tenant_blocks: int | None = Field(
        None, ge=1, description="blocks of one tenant's sequences beyond which no other of them begins; none: any"
    )
    lease_s: float = Field(10.0, ge=0.1, le=3600, description="seconds a worker's right lasts after its renewal")
    offer_s: float = Field(
        DEFAULT_OFFER_S,
        ge=0.1,
        le=3600,
        description="seconds a sequence that was handed over, or whose worker died, waits for its next owner",
    )
    grace_s: float = Field(
        2.0,
        ge=0,
        le=3600,
        description="seconds after a lost lease until a worker that still holds its blocks is reported",
    )
