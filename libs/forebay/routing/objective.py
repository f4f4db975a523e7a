"""Which of several forecasts is best. Pure.

REALTIME wants to meet its target, then to be cheap; where nothing meets it, to miss it least. BATCH wants to be cheap,
and likewise to meet its deadline, if it has one.
"""

from collections.abc import Sequence
from typing import Final

from forebay.routing.forecast import EQUAL_S, EQUAL_TIME, Forecast

EQUAL_COST: Final = 1.02
"""Up to so many times the least is as cheap."""


def choose(options: Sequence[Forecast], tie_break: float) -> tuple[Forecast, Forecast | None]:
    """The best of at least one, and the best of the others.

    tie_break: a number in [0, 1) that chooses among those that are as good, so that routers which plan at the same time
    do not all choose the same.
    """
    best = min(options)
    most_late, most_usd = best.lateness * EQUAL_TIME, best.usd * EQUAL_COST
    most_joules, most_first_s = best.joules * EQUAL_COST, best.time_to_first_token_s * EQUAL_TIME + EQUAL_S
    equals = [
        one
        for one in options
        if one[0] <= most_late and one[1] <= most_usd and one[2] <= most_joules and one[3] <= most_first_s
    ]
    equals = [one for one in equals if not one.is_split] or equals  # a hand-over must win, not draw
    chosen = equals[int(tie_break * len(equals))]
    if chosen is not best:
        return chosen, best
    return best, min((one for one in options if one is not best), default=None)
