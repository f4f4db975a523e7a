"""Figures of accuracy compare over commits: they are of the same tokens."""

import hashlib

from forebay.models.default_model import resolve_model
from forebay.models.model_file import open_model
from scripts.benchmarks.corpus import corpus


def test_the_tokens_are_those_of_earlier_figures() -> None:
    texts = corpus(open_model(resolve_model(None)))

    assert sum(len(text.token_ids) for text in texts) == 3_550
    digest = hashlib.sha256(repr([(text.name, text.token_ids) for text in texts]).encode()).hexdigest()
    assert digest == "9367d346e8abf4e714a1846b1e17075c74a03f5613968a97ab5863f5e644aaa2"
