"""Settings of a decode worker."""

from pydantic import Field

from forebay import ports
from forebay.worker.settings import WorkerSettings


class DecodeSettings(WorkerSettings):
    """A decode worker generates tokens for many sequences at once. These are its settings."""

    listen: str = Field(
        ports.default_address(ports.DECODE), description="address to serve on, HOST:PORT; port 0 takes any"
    )
