"""How many DEVICE blocks the sequences of each tenant refer to, and how many they may."""

from collections import Counter

from forebay.errors import KvExhaustedError


class TenantQuota:
    """Counts blocks in block tables; one that two sequences of a tenant share counts twice. Bounded by the blocks."""

    def __init__(self, most_blocks: int | None) -> None:
        """Args: most_blocks: that one tenant may have; None: all."""
        self._most_blocks = most_blocks
        self._blocks: Counter[str] = Counter()

    def check(self, tenant: str, count: int) -> None:
        """Whether a tenant may have so many more. Raises KvExhaustedError."""
        most, held = self._most_blocks, self._blocks[tenant]
        if most is not None and held + count > most:
            raise KvExhaustedError(
                f"{count} KV blocks are wanted; this tenant's sequences have {held} of the {most} that one may have",
                wanted_blocks=str(count),
                available_blocks=str(most - held),
            )

    def take(self, tenant: str, count: int) -> None:
        """So many were granted."""
        self._blocks[tenant] += count

    def give_back(self, tenant: str, count: int) -> None:
        """So many came back."""
        self._blocks[tenant] -= count
        if not self._blocks[tenant]:
            del self._blocks[tenant]
