"""The texts over which accuracy is measured: prose, dialogue, Chinese, numbers; this repository's docs, code, licence.

Nothing is fetched: what is not of the repository was written for this. Judges nothing.
"""

from dataclasses import dataclass
from pathlib import Path

from forebay.models.model_file import ModelFile
from forebay.tokenizer.build import build_tokenizer

MOST_TOKENS = 448
_HERE = Path(__file__).parent
_ROOT = _HERE.parents[1]
_SOURCES = {
    "English prose": _HERE / "texts" / "prose.txt",
    "dialogue": _HERE / "texts" / "dialogue.txt",
    "Chinese": _HERE / "texts" / "chinese.txt",
    "numbers": _HERE / "texts" / "numbers.txt",
    "documentation": _ROOT / "docs" / "architecture.md",
    "Python": _ROOT / "libs" / "forebay" / "engine" / "scheduler.py",
    "C++": _ROOT / "libs" / "forebay" / "kernels" / "cpu" / "native" / "threads.cpp",
    "licence": _ROOT / "LICENSE",
}


@dataclass(frozen=True, slots=True)
class Text:
    """One text as token ids, cut off at MOST_TOKENS."""

    name: str
    token_ids: list[int]


def corpus(model: ModelFile) -> list[Text]:
    """All texts, in the model's tokens."""
    tokenizer = build_tokenizer(model.tokenizer_source)
    return [
        Text(name, tokenizer.encode(path.read_text(encoding="utf-8")).ids[:MOST_TOKENS])
        for name, path in _SOURCES.items()
    ]
