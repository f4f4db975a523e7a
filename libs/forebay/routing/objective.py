"""Which of several ways is best. Pure.

REALTIME wants to meet its target, then to be cheap; where nothing meets it, to miss it least. BATCH wants to be cheap,
and likewise to meet its deadline, if it has one.
"""

from typing import Final

import numpy as np

from forebay.routing.fleet_columns import Flags, Rows
from forebay.routing.outlook import EQUAL_S, EQUAL_TIME, Outlook

EQUAL_COST: Final = 1.02
"""Up to so many times the least is as cheap."""


def choose(ways: Outlook, tie_break: float) -> tuple[int, int | None]:
    """The number of the best of at least one way, and of the best of the others.

    tie_break: a number in [0, 1) that chooses among those that are as good, so that routers which plan at the same time
    do not all choose the same.
    """
    best = _least(ways)
    most_late, most_usd = ways.lateness.item(best) * EQUAL_TIME, ways.usd.item(best) * EQUAL_COST
    equals = ((ways.usd <= most_usd) & (ways.lateness <= most_late)).nonzero()[0]
    if len(equals) > 1:
        equals = equals[_as_good(ways, equals, best)]
    alone = equals[equals % ways.width == 0]
    equals = alone if len(alone) else equals  # a hand-over must win, not draw
    chosen = equals.item(int(tie_break * len(equals)))
    if chosen != best:
        return chosen, best
    if ways.way_count == 1:
        return best, None
    late = ways.lateness.item(best)
    ways.lateness[best] = np.inf
    next_best = _least(ways)
    ways.lateness[best] = late
    return best, next_best


def _least(ways: Outlook) -> int:
    """The first by lateness, then money, energy and time."""
    least = ways.lateness.item(ways.lateness.argmin())
    rows: Rows = (ways.lateness == least).nonzero()[0]
    for column in (ways.usd, ways.joules, ways.first_s, ways.token_s, ways.transfer_s):
        if len(rows) == 1:
            break
        values = column.take(rows)
        rows = rows[values == values.item(values.argmin())]
    return rows.item(0)


def _as_good(ways: Outlook, rows: Rows, best: int) -> Flags:
    """Which of these take no more energy and time."""
    most_joules = ways.joules.item(best) * EQUAL_COST
    most_first_s = ways.first_s.item(best) * EQUAL_TIME + EQUAL_S
    as_good: Flags = (ways.joules.take(rows) <= most_joules) & (ways.first_s.take(rows) <= most_first_s)
    return as_good
