"""Settings of a prefill worker."""

from pydantic import Field

from forebay import ports
from forebay.chips.chip_class import PREFILL_DEFAULT
from forebay.worker.settings import CHIP_CLASS_HELP, WorkerSettings


class PrefillSettings(WorkerSettings):
    """A prefill worker computes prompts and hands their sequences over. These are its settings."""

    listen: str = Field(
        ports.default_address(ports.PREFILL), description="address to serve on, HOST:PORT; port 0 takes any"
    )
    chip_class: str = Field(PREFILL_DEFAULT, description=CHIP_CLASS_HELP)
