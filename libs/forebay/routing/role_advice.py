"""What is advised on a fleet's roles. Pure: `role_split` makes it."""

from dataclasses import dataclass
from typing import NamedTuple

from forebay.role import Role
from forebay.routing.demand import Demand


class SplitForecast(NamedTuple):
    """What the demand would come to. busy: of the workers of a role, as a share of what they can do; 1 is too much.

    pressure: the worse of both times as a share of its target; below 1 both are met.
    """

    prefill_ids: tuple[str, ...]
    decode_ids: tuple[str, ...]
    prefill_busy: float
    decode_busy: float
    time_to_first_token_s: float
    time_per_output_token_s: float
    pressure: float

    @property
    def name(self) -> str:
        """Prefill to decode workers."""
        return f"{len(self.prefill_ids)}:{len(self.decode_ids)}"


@dataclass(frozen=True, slots=True)
class Recommendation:
    """For a demand. now: the split as it is; best: that which is worth having, or the same where no switch is."""

    demand: Demand
    now: SplitForecast
    best: SplitForecast
    splits: tuple[SplitForecast, ...]
    switches: tuple[tuple[str, Role], ...]
    reason: str
