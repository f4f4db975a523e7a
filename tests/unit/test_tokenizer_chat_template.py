"""Conversations are rendered as transformers renders them, and no template takes the service down."""

import itertools
from datetime import datetime
from functools import cache
from typing import Any

import pytest
import transformers

from forebay.errors import InvalidFieldError, TemplateFailedError, UnknownRoleError
from forebay.models.default_model import resolve_model
from forebay.models.model_file import ModelFile, open_model
from forebay.tokenizer.build import build_tokenizer
from forebay.tokenizer.chat_template import ChatTemplate, Message
from forebay.tokenizer.special_tokens import special_token_texts

SECRET = "prompt text that nobody may see"
HELLO = [Message("user", "Hello")]
CONVERSATIONS = {
    "user": HELLO,
    "system": [Message("system", "Be brief."), Message("user", "What is 2+2?")],
    "turns": [Message("user", "a"), Message("assistant", "b"), Message("tool", "{}"), Message("user", " c\n\n")],
    "markup": [Message("user", "<b>&amp;'\"{{ 1 }}{% raw %}</b> <|im_end|> 你好 😀")],
    "empty content": [Message("user", "")],
}
TEMPLATES = {
    "trim and strip": "{% for m in messages %}\n  {% if m.role %}\n[{{ m.content }}]\n  {% endif %}\n{% endfor %}\nend",
    "json": "{{ messages | tojson }}{{ {'b': '<é>', 'a': 1} | tojson(indent=2) }}",
    "loop controls": "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "loop facts": "{% for m in messages %}{{ loop.last }}{{ loop.length }}{{ loop.nextitem }}{% endfor %}",
    "loop filter": "{% for m in messages if m.role == 'user' %}{{ m.content }}{% else %}none{% endfor %}",
    "namespace": "{% set s = namespace(n=0) %}{% for m in messages %}{% set s.n = s.n + 1 %}{% endfor %}{{ s.n * 2 }}",
    "macro": "{% macro f(m) %}<{{ m.role }}>{% endmacro %}{% for m in messages %}{{ f(m) }}{% endfor %}",
    "specials": "{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}{{ tools is none }}{{ documents is none }}",
    "prompt": "{% if add_generation_prompt %}assistant:{% endif %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "range": "{% for i in range(3) %}{{ '-' * i }}{% endfor %}",
    "undefined": "{{ nothing }}{% if nothing is defined %}x{% endif %}",
    "slices": "{% for m in messages[::-1] %}{{ m.content[:2] | upper | trim }}{% endfor %}{{ messages | length }}",
    "items": "{% for key, value in messages[0].items() %}{{ key }}={{ value }};{% endfor %}",
}


@cache
def reference() -> Any:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(smollm2().tokenizer_source),
        chat_template=smollm2().chat_template,
        **specials(),
    )


@cache
def smollm2() -> ModelFile:
    return open_model(resolve_model(None))


@cache
def specials() -> dict[str, str]:
    return special_token_texts(smollm2().tokenizer_source)


def by_transformers(conversation: list[Message], template: str | None = None) -> str:
    messages = [{"role": message.role, "content": message.content} for message in conversation]
    rendered: str = reference().apply_chat_template(
        messages, chat_template=template, add_generation_prompt=True, tokenize=False
    )
    return rendered


@pytest.mark.parametrize("conversation", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
def test_the_model_s_own_template(conversation: list[Message]) -> None:
    template = ChatTemplate(smollm2().chat_template, specials())

    assert template.render(conversation) == by_transformers(conversation)


@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES.keys())
@pytest.mark.parametrize("conversation", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
def test_any_template_renders_as_in_transformers(source: str, conversation: list[Message]) -> None:
    assert ChatTemplate(source, specials()).render(conversation) == by_transformers(conversation, source)


def test_the_clock_is_an_argument() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", {}, now=lambda: datetime(2026, 11, 23))

    assert template.render(HELLO) == "23 Nov 2026"


def test_refuses_no_message() -> None:
    with pytest.raises(InvalidFieldError) as refusal:
        ChatTemplate("x", {}).render([])

    assert refusal.value.field == "chat.messages"


@pytest.mark.parametrize("role", ["", "User", "developer", SECRET])
def test_refuses_an_unknown_role_and_names_its_place(role: str) -> None:
    with pytest.raises(UnknownRoleError) as refusal:
        ChatTemplate("x", {}).render([*HELLO, Message(role, "x")])

    assert refusal.value.field == "chat.messages[1].role"
    assert SECRET not in refusal.value.message


FAILING = {
    "none": (None, "the model has no chat template"),
    "syntax": ("{% if %}", "cannot be compiled"),
    "refusal": ("{{ raise_exception('roles must alternate') }}", "refuses the conversation: roles must alternate"),
    "refusal with content": ("{{ raise_exception(messages[0].content) }}", r"failed \(TemplateError\)"),
    "undefined": ("{{ nothing.at.all }}", r"failed \(UndefinedError\)"),
    "type": ("{{ messages + 1 }}", r"failed \(TypeError\)"),
    "inside of python": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", r"failed \(SecurityError\)"),
    "inside of a function": ("{{ raise_exception.__globals__.x }}", r"failed \(SecurityError\)"),
    "changing": ("{{ messages.append(1) }}", r"failed \(SecurityError\)"),
    "nested loops": (
        "{% for a in range(999) %}{% for b in range(999) %}{% endfor %}{% endfor %}",
        "more than 100,000 steps",
    ),
    "endless recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", r"failed \(RecursionError\)"),
    "long text": ("{% set x = 'x' * 60000 %}{% for i in range(300) %}{{ x }}{% endfor %}", "longer than 16,777,216"),
    "big string": ("{{ 'x' * 100000000 }}", r"too large by \*"),
    "big list": ("{{ 100000000 * [1] }}", r"too large by \*"),
    "big power": ("{{ 9 ** 99999 }}", r"too large by \*\*"),
    "big range": ("{{ range(1000000000) | list }}", r"failed \(OverflowError\)"),
}


@pytest.mark.parametrize(("source", "expected"), FAILING.values(), ids=FAILING.keys())
def test_a_failing_template_is_a_clear_refusal(source: str | None, expected: str) -> None:
    with pytest.raises(TemplateFailedError, match=expected) as refusal:
        ChatTemplate(source, {}).render([Message("user", SECRET)])

    assert SECRET not in refusal.value.message
    assert refusal.value.__context__ is None or refusal.value.__suppress_context__, "a log would show the content"


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99) %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    ],
    ids=["loop", "calls"],
)
def test_a_slow_template_is_stopped(source: str) -> None:
    tenths = itertools.count()
    template = ChatTemplate(source, {}, clock_s=lambda: next(tenths) / 10)

    with pytest.raises(TemplateFailedError, match=r"more than 2\.0 s"):
        template.render(HELLO)


def test_each_rendering_has_bounds_of_its_own() -> None:
    template = ChatTemplate("{% for a in range(60000) %}{% endfor %}ok", {})

    assert {template.render(HELLO) for _ in range(3)} == {"ok"}
