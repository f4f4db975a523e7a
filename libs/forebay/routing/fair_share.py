"""Whose turn it is among tenants that wait: who was served least. Pure.

Virtual counters of work, as in Y. Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024: a tenant that
comes back after a while begins where the others are, so that nobody saves up.
"""

from collections.abc import Iterable
from typing import Final

MOST_TENANTS: Final = 1024
"""Counters that are kept. Beyond, those that are furthest behind are forgotten, which costs them nothing, mostly."""


class FairShare:
    """Work done for each tenant, in tokens, from a common floor on.

    Invariant: a tenant that is not known was served as much as the floor, which never falls.
    """

    def __init__(self) -> None:
        self._served_tokens: dict[str, int] = {}
        self._floor_tokens = 0

    def served_tokens(self, tenant: str) -> int:
        """Its counter."""
        return max(self._served_tokens.get(tenant, 0), self._floor_tokens)

    def charge(self, tenant: str, tokens: int, waiting: Iterable[str]) -> None:
        """So many tokens of work are done for it. waiting: tenants with someone in line, itself perhaps among them."""
        self._floor_tokens = min(map(self.served_tokens, waiting), default=self.served_tokens(tenant))
        self._served_tokens[tenant] = self.served_tokens(tenant) + tokens
        if len(self._served_tokens) > MOST_TENANTS:
            self._forget()

    def _forget(self) -> None:
        known = sorted(self._served_tokens.items(), key=lambda item: item[1], reverse=True)
        self._served_tokens = {
            tenant: tokens for tenant, tokens in known[: MOST_TENANTS // 2] if tokens > self._floor_tokens
        }
