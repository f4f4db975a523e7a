"""Starting the tracing of a process. Knows neither exporters nor the SDK, which it only loads."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forebay.telemetry.pipeline import Telemetry


def configure(service_name: str, *, state_dir: Path | None, attributes: Mapping[str, str]) -> "Telemetry":
    """Starts tracing in this process; `tracer()` uses it until `shutdown` of what is returned.

    Args:
        service_name: `service.name` of every span.
        state_dir: folder of the node's span store; None keeps no spans locally.
        attributes: further resource attributes, such as `forebay.node_id`.

    Never fails for want of a destination: a file or collector that is away costs its spans, no more.
    """
    # Imported here: the SDK is installed with the services only, while the client imports this room for `inject`.
    from forebay.telemetry.pipeline import start  # noqa: PLC0415

    return start(service_name, state_dir=state_dir, attributes=attributes)
