"""Settings of a router."""

from pathlib import Path

from pydantic import Field

from forebay import ports
from forebay.routing.admission import DEFAULT_QUEUE_LENGTH, DEFAULT_RESERVED_SHARE, DEFAULT_SHED_AFTER_S
from forebay.routing.baseline import Policy
from forebay.routing.failover import DEFAULT_MOST_LOST_WORKERS, DEFAULT_PATIENCE_S
from forebay.routing.plan import DEFAULT_ALONE_TOKENS
from forebay.routing.prefix_index import DEFAULT_CAPACITY
from forebay.routing.silence import DEFAULT_SILENT_S
from forebay.rpc.settings import ServiceSettings


class RouterSettings(ServiceSettings):
    """The router accepts requests, plans them, and streams their text. These are its settings."""

    listen: str = Field(
        ports.default_address(ports.ROUTER), description="address to serve on, HOST:PORT; port 0 takes any"
    )
    prefix_index_capacity: int = Field(
        DEFAULT_CAPACITY, ge=1, description="most block hashes remembered, about 250 bytes each"
    )
    max_request_s: float = Field(
        3600.0, gt=0, le=86_400, description="seconds after which a request is ended, whatever its own deadline"
    )
    alone_tokens: int = Field(
        DEFAULT_ALONE_TOKENS,
        ge=0,
        description="most prompt tokens that a decode worker computes alone although there is a prefill worker",
    )
    routing_policy: Policy = Field(
        Policy.COST,
        description="how workers are chosen: cost (seconds, joules and money), or to compare with it least-load,"
        " round-robin, prefix, always-split, always-local",
    )
    fleet_file: Path | None = Field(
        None, description="YAML file with the rates of links between nodes; default: 10 Gbit/s"
    )
    failover_s: float = Field(
        DEFAULT_PATIENCE_S,
        ge=0,
        le=3600,
        description="seconds for which a request whose worker failed is tried on others before its caller hears of it",
    )
    silent_s: float = Field(
        DEFAULT_SILENT_S,
        ge=0,
        le=3600,
        description="seconds without a report after which a worker is taken for gone, while others of its role are"
        " heard; they report each second; 0: only when its membership runs out",
    )
    most_lost_workers: int = Field(
        DEFAULT_MOST_LOST_WORKERS,
        ge=1,
        description="workers lost with a request in their hands that make it the probable cause, and end it; with one"
        " fewer it is tried on a worker of its own",
    )
    reserved_share: float = Field(
        DEFAULT_RESERVED_SHARE,
        ge=0,
        lt=1,
        description="share of the workers' places that BATCH leaves free for REALTIME to come",
    )
    queue_length: int = Field(
        DEFAULT_QUEUE_LENGTH, ge=0, description="most requests that wait here for room; BATCH is turned away first"
    )
    shed_after_s: float = Field(
        DEFAULT_SHED_AFTER_S,
        ge=0,
        le=3600,
        description="a REALTIME request that would wait longer for others is refused at once, with a time to try again",
    )
