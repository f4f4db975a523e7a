"""Settings of a decode worker."""

from pydantic import Field

from forebay import ports
from forebay.decode.gathering import DEFAULT_GATHER_S
from forebay.worker.settings import WorkerSettings


class DecodeSettings(WorkerSettings):
    """What `python -m forebay.decode` takes: what every worker takes, and how it writes."""

    listen: str = Field(
        ports.default_address(ports.DECODE), description="address to serve on, HOST:PORT; port 0 takes any"
    )
    gather_ms: float = Field(
        DEFAULT_GATHER_S * 1e3,
        ge=0,
        le=1_000,
        description="milliseconds for which tokens are gathered into one message; first and last ones go at once",
    )
