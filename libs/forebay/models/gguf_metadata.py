"""Key-value metadata of a GGUF file, with typed access. Knows nothing of bytes on disk or of what the keys mean."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from forebay.models.refusals import damaged

Scalar = int | float | bool | str
MetadataValue = Scalar | list[int] | list[float] | list[bool] | list[str]
Kind = TypeVar("Kind", int, float, bool, str)


def _is_kind(value: object, kind: type) -> bool:
    # A bool is no number here, though Python says so; an integer will do where a float is wanted.
    return type(value) is kind or (kind is float and type(value) is int)


@dataclass(frozen=True, slots=True)
class GgufMetadata:
    """All key-value pairs of one file. Arrays are lists of one element type, as the format guarantees."""

    path: Path
    values: dict[str, MetadataValue]

    def get(self, key: str, kind: type[Kind]) -> Kind | None:
        """The value, or None when the key is absent.

        Raises:
            StartError: the value is of another type.
        """
        value = self.values.get(key)
        if value is None:
            return None
        if not _is_kind(value, kind):
            raise damaged(self.path, f"metadata key {key} is {type(value).__name__} instead of {kind.__name__}")
        return cast("Kind", value)

    def require(self, key: str, kind: type[Kind]) -> Kind:
        """The value.

        Raises:
            StartError: the key is absent or its value is of another type.
        """
        value = self.get(key, kind)
        if value is None:
            raise damaged(self.path, f"metadata key {key} is missing")
        return value

    def get_list(self, key: str, kind: type[Kind]) -> list[Kind] | None:
        """The array, or None when the key is absent.

        Raises:
            StartError: the value is no array of that type.
        """
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or (value and not _is_kind(value[0], kind)):
            raise damaged(self.path, f"metadata key {key} is not an array of {kind.__name__}")
        return cast("list[Kind]", value)
