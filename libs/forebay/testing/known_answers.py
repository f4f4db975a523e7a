"""Questions with their right answers, for loads that must notice a single wrong token. Knows nothing of faults.

An answer depends on prompt, seed and sampling alone: a request's tokens are the same whatever is computed beside it,
wherever it is computed, and whatever of it was found in the cache.
"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from forebay.client import AsyncClient, RequestOptions

_TOKEN_IDS: Final = range(1_000, 40_000)
_CONCURRENCY: Final = 4


@dataclass(frozen=True, slots=True)
class Question:
    """One request, whose answer is always the same."""

    prompt: tuple[int, ...]
    options: RequestOptions


@dataclass(frozen=True, slots=True)
class KnownAnswer:
    """What a question is answered with."""

    question: Question
    token_ids: tuple[int, ...]
    text: str


def varied_questions(source: random.Random, stem_count: int, per_stem_count: int) -> list[Question]:
    """Prompts of 100 to 420 tokens, of which groups share their beginning; greedy and seeded, LOCAL and SPLIT."""
    questions = []
    for _ in range(stem_count):
        stem = _random_tokens(source, source.randint(90, 200))
        for number in range(per_stem_count):
            options = RequestOptions(max_tokens=source.randint(12, 48), ignore_eos=True)
            options["mode"] = "split" if number % 2 else "local"
            options |= {"temperature": 0.0} if number % 4 < 2 else {"temperature": 0.8, "seed": source.randrange(1000)}
            questions.append(Question(stem + _random_tokens(source, source.randint(10, 220)), options))
    return questions


async def learn_answers(address: str, questions: Sequence[Question]) -> list[KnownAnswer]:
    """Asks a mesh that nobody disturbs."""
    places = asyncio.Semaphore(_CONCURRENCY)

    async def ask(client: AsyncClient, question: Question) -> KnownAnswer:
        async with places:
            completion = await client.generate(list(question.prompt), **question.options)
            return KnownAnswer(question, completion.token_ids, completion.text)

    async with AsyncClient(address) as client:
        return await asyncio.gather(*(ask(client, question) for question in questions))


def _random_tokens(source: random.Random, count: int) -> tuple[int, ...]:
    return tuple(source.choices(_TOKEN_IDS, k=count))
