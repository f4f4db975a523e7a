"""Settings of a decode worker."""

from pydantic import Field

from forebay.worker.settings import WorkerSettings


class DecodeSettings(WorkerSettings):
    """What `python -m forebay.decode` takes: what every worker takes."""

    listen: str = Field("127.0.0.1:7420", description="address to serve on, HOST:PORT; port 0 takes any")
