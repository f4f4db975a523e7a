"""Settings of a decode worker."""

from pydantic import Field

from forebay import ports
from forebay.worker.settings import WorkerSettings


class DecodeSettings(WorkerSettings):
    """What `python -m forebay.decode` takes: what every worker takes."""

    listen: str = Field(
        ports.default_address(ports.DECODE), description="address to serve on, HOST:PORT; port 0 takes any"
    )
