"""Settings of a prefill worker."""

from pydantic import Field

from forebay.worker.settings import WorkerSettings


class PrefillSettings(WorkerSettings):
    """What `python -m forebay.prefill` takes: what every worker takes."""

    listen: str = Field("127.0.0.1:7410", description="address to serve on, HOST:PORT; port 0 takes any")
