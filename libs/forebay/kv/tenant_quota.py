"""How many DEVICE blocks the sequences of each tenant refer to, and how many they may before another may begin."""

from collections import Counter

from forebay.errors import RETRY_AFTER_S, TenantQuotaError


class TenantQuota:
    """Counts blocks in block tables; one that two sequences of a tenant share counts twice. Bounded by the blocks.

    Only beginnings are refused: a sequence that runs is never kept from its next block, which would hold up all others.
    """

    def __init__(self, most_blocks: int | None) -> None:
        """Args: most_blocks: that one tenant may have; None: all."""
        self._most_blocks = most_blocks
        self._blocks: Counter[str] = Counter()

    def check(self, tenant: str, count: int) -> None:
        """Whether a sequence of so many blocks may begin. Raises TenantQuotaError."""
        most, held = self._most_blocks, self._blocks[tenant]
        if most is not None and count > most:  # waiting does not help
            raise TenantQuotaError(
                f"{count} KV blocks are wanted and one tenant may have {most}; shorten the prompt, or raise"
                " --tenant-blocks of the KV-cache service"
            )
        if most is not None and held + count > most:
            raise TenantQuotaError(
                f"{count} KV blocks are wanted; this tenant's sequences have {held} of the {most} that one may have",
                retry_after_s=RETRY_AFTER_S,
            )

    def take(self, tenant: str, count: int) -> None:
        """So many were granted."""
        self._blocks[tenant] += count

    def give_back(self, tenant: str, count: int) -> None:
        """So many came back."""
        self._blocks[tenant] -= count
        if not self._blocks[tenant]:
            del self._blocks[tenant]
