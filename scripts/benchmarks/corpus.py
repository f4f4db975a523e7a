"""The texts over which accuracy is measured: prose, dialogue, Chinese, numbers, documentation, code, a licence.

Nothing is fetched: all was written for this, or copied from this repository once. The copies stay as they are, whatever
becomes of what they were copied from, so that figures of two commits compare; so does the licence. Judges nothing.
"""

from dataclasses import dataclass
from pathlib import Path

from forebay.models.model_file import ModelFile
from forebay.tokenizer.build import build_tokenizer

MOST_TOKENS = 448
_TEXTS = Path(__file__).parent / "texts"
_LICENCE = Path(__file__).parents[2] / "LICENSE"
_SOURCES = {
    "English prose": _TEXTS / "prose.txt",
    "dialogue": _TEXTS / "dialogue.txt",
    "Chinese": _TEXTS / "chinese.txt",
    "numbers": _TEXTS / "numbers.txt",
    "documentation": _TEXTS / "documentation.txt",
    "Python": _TEXTS / "python.txt",
    "C++": _TEXTS / "c++.txt",
    "licence": _LICENCE,
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
