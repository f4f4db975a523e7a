"""Settings every service has: from flags, else from FOREBAY_* environment variables, else defaults."""

import socket
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from forebay import ports
from forebay.rpc.address import checked_address


def host_name() -> str:
    """This host's own name, spelled as a node id."""
    return socket.gethostname().replace(".", "-")


class ServiceSettings(BaseSettings):
    """Each field is a flag (--node-id) and an environment variable (FOREBAY_NODE_ID)."""

    model_config = SettingsConfigDict(
        env_prefix="FOREBAY_",
        cli_parse_args=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        extra="forbid",
    )

    listen: str = Field("127.0.0.1:0", description="address to serve on, HOST:PORT; port 0 takes any")
    advertise: str | None = Field(None, description="address others reach this service at; default: the bound one")
    node_id: str = Field(
        default_factory=host_name,
        pattern=r"^[A-Za-z0-9_-]{1,64}$",
        description="name of this host in the fleet",
    )
    nats_url: str = Field(f"nats://{ports.default_address(ports.NATS)}", description="NATS server")
    state_dir: Path | None = Field(None, description="folder for the local span store; none: no local spans")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe level to log")
    log_format: Literal["text", "json"] = Field("text", description="how log lines look")
    drain_s: float = Field(10.0, ge=0, le=3600, description="seconds that running work may take after SIGTERM")

    @field_validator("listen", "advertise")
    @classmethod
    def _is_address(cls, text: str | None) -> str | None:
        return None if text is None else checked_address(text)
