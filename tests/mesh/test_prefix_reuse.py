"""A prompt seen before is not computed again, and the answer is the same."""

from typing import Literal

import pytest

from forebay.client import Client, ExecutionMode
from forebay.client.request import Message, RequestOptions
from forebay.testing.prompts import LONG_PROMPTS

BLOCK_TOKENS = 32


@pytest.mark.parametrize("first_mode", ["split", "local"])
def test_a_second_identical_prompt_is_found(client: Client, first_mode: Literal["split", "local"]) -> None:
    messages = [Message(role="user", content=LONG_PROMPTS[0])]
    asked = RequestOptions(max_tokens=32, temperature=0.0, logprobs=3, cache_salt=f"reuse-{first_mode}")
    first = client.chat(messages, **RequestOptions(**asked, mode=first_mode))
    second = client.chat(messages, **asked)
    assert first.usage.cached_tokens == 0
    reusable = (first.usage.prompt_tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    assert second.usage.cached_tokens == reusable > 0
    assert second.plan.mode is ExecutionMode.RESUME
    assert (second.text, second.token_ids, second.logprobs) == (first.text, first.token_ids, first.logprobs)


def test_prefixes_are_not_shared_between_tenants_or_salts(client: Client) -> None:
    for tenant, salt in (("a", ""), ("b", ""), ("a", "s")):
        completion = client.generate(LONG_PROMPTS[1], max_tokens=1, temperature=0, tenant=tenant, cache_salt=salt)
        assert completion.usage.cached_tokens == 0, (tenant, salt)


def test_a_longer_conversation_reuses_its_beginning(client: Client) -> None:
    messages = [Message(role="user", content=LONG_PROMPTS[0])]
    first = client.chat(messages, max_tokens=40, temperature=0, cache_salt="conversation")
    messages += [Message(role="assistant", content=first.text), Message(role="user", content="Why?")]
    second = client.chat(messages, max_tokens=4, temperature=0, cache_salt="conversation")
    assert second.usage.cached_tokens >= (first.usage.prompt_tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS
