"""One JSON object of a model folder, with typed access. Knows nothing of what the keys mean."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from forebay.errors import StartError
from forebay.models.refusals import damaged

Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True)
class JsonObject:
    """The object and the file it came from. A key whose value is null counts as absent."""

    path: Path
    values: dict[str, Any]

    def get(self, key: str, kind: type[Kind]) -> Kind | None:
        """The value, or None when it is absent or null. An integer will do where a float is wanted.

        Raises:
            StartError: the value is of another type.
        """
        value = self.values.get(key)
        if value is None:
            return None
        if kind is float and type(value) is int:
            return kind(value)  # type: ignore[call-arg]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise damaged(self.path, f"{key} is {type(value).__name__} instead of {kind.__name__}")
        return value

    def require(self, key: str, kind: type[Kind]) -> Kind:
        """The value.

        Raises:
            StartError: the value is absent, null or of another type.
        """
        value = self.get(key, kind)
        if value is None:
            raise damaged(self.path, f"key {key} is missing")
        return value

    def child(self, key: str) -> "JsonObject | None":
        """The object under the key, or None when it is absent, null or empty."""
        value: dict[str, Any] | None = self.get(key, dict)
        return JsonObject(self.path, value) if value else None

    def integers(self, key: str) -> tuple[int, ...]:
        """One integer or a list of them; empty when absent."""
        value = self.values.get(key)
        if value is None:
            return ()
        values = value if isinstance(value, list) else [value]
        if any(type(item) is not int for item in values):
            raise damaged(self.path, f"{key} is neither an integer nor a list of integers")
        return tuple(dict.fromkeys(values))


def read_json(path: Path) -> JsonObject:
    """The object in the file.

    Raises:
        StartError: the file is missing, unreadable, no JSON, or not an object.
    """
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise StartError(f"{path}: cannot be read ({error.strerror}); is this a Hugging Face model folder?") from None
    except ValueError:
        raise damaged(path, "not valid JSON") from None
    if not isinstance(values, dict):
        raise damaged(path, "not a JSON object")
    return JsonObject(path, values)
