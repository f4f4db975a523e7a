"""The first page of a block file: whose blocks these are. Readable by people (`head -1`). Does no I/O."""

import json
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, Final

from forebay.kv.layout import KvLayout
from forebay.kvcache.disk.shape import FORGOTTEN_OFFSET, FileShape

MAGIC: Final = b"forebay kv blocks "
"""What every version of our files begins with, and nobody else's does."""
FORMAT_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class FileHeader:
    """Blocks can be read only by who has the same header. content_key: says what the bytes of blocks mean."""

    content_key: str
    layout: KvLayout
    shape: FileShape

    def encoded(self) -> bytes:
        """Its page up to FORGOTTEN_OFFSET: the magic, JSON, a new line, zeros."""
        page = MAGIC + json.dumps(self._fields(), sort_keys=True).encode() + b"\n"
        assert len(page) <= FORGOTTEN_OFFSET
        return page.ljust(FORGOTTEN_OFFSET, b"\0")

    def differences(self, found: bytes) -> str:
        """How one of ours that begins with the magic differs from this header, for a person."""
        try:
            theirs = json.loads(found.removeprefix(MAGIC).rstrip(b"\0"))
            return "; ".join(
                f"{name} {theirs.get(name)}, not {value}"
                for name, value in self._fields().items()
                if theirs.get(name) != value
            )
        except (ValueError, AttributeError):
            return "its header is damaged"

    def _fields(self) -> dict[str, Any]:
        layout = {f"layout.{name}": _plain(value) for name, value in asdict(self.layout).items()}
        return {
            "format_version": FORMAT_VERSION,
            "model_digest": self.content_key,  # named so in format 1; another name would empty every disk tier
            **layout,
            "stride_bytes": self.shape.stride_bytes,
            "block_count": self.shape.block_count,
        }


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value
