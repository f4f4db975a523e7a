"""Renders a conversation by the model's Jinja template, as transformers does, in a sandbox with bounds.

Knows nothing of token ids. Templates come with model files, which an operator chose: the sandbox keeps them from the
process's insides, and the bounds keep a bad one from running for ever. What a template holds in memory by joining
strings again and again is not bounded.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from forebay.errors import InvalidFieldError, TemplateFailedError, UnknownRoleError

ROLES = ("system", "user", "assistant", "tool")
_MAX_STEPS = 100_000  # loop rounds and calls of one rendering
_MAX_RENDERING_S = 2.0
_MAX_CHARACTERS = 16 << 20  # no request is larger
_MAX_PRODUCT = 65_536  # what * and ** may make, in characters, items or bits


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: str
    content: str


class ChatTemplate:
    """A compiled template; renders on any thread."""

    def __init__(
        self,
        source: str | None,
        special_tokens: Mapping[str, str],
        now: Callable[[], datetime] = datetime.now,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Compiles.

        Args:
            source: the template; None: every rendering fails.
            special_tokens: what the template may name: bos_token, eos_token, ...
            now: the calendar behind strftime_now.
            clock_s: seconds that only grow, for the bound on a rendering's time.
        """
        self._clock_s = clock_s
        self._source = source
        self._special_tokens = dict(special_tokens)
        self._template: jinja2.Template | None = None
        if source is None:
            self._failure = "the model has no chat template"
            return
        environment = _BoundedEnvironment(now)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            self._failure = f"the model's chat template cannot be compiled ({type(error).__name__})"

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as text, with the generation prompt.

        Raises:
            InvalidFieldError: there is no message.
            UnknownRoleError: a role is none of ROLES.
            TemplateFailedError: there is no template, or it refuses the conversation, fails, or does not end.
        """
        if not messages:
            raise InvalidFieldError("a conversation has at least one message", field="chat.messages")
        for index, message in enumerate(messages):
            if message.role not in ROLES:
                raise UnknownRoleError(f"a role is one of {', '.join(ROLES)}", field=f"chat.messages[{index}].role")
        if self._template is None:
            raise TemplateFailedError(self._failure, field="chat")
        variables = {
            **self._special_tokens,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
        }
        token = _steps.set(_Steps(self._clock_s))
        try:
            return _join_bounded(self._template.generate(variables))
        except Exception as error:  # whatever a template does wrong, the conversation cannot be rendered
            raise TemplateFailedError(self._reason(error), field="chat") from None
        finally:
            _steps.reset(token)

    def _reason(self, error: Exception) -> str:
        """Why, in one sentence. A template's own words are passed on only if no prompt text can be in them."""
        if isinstance(error, _TooMuchError):
            return f"the model's chat template was stopped: {error}"
        words = str(error)
        if isinstance(error, jinja2.TemplateError) and words and self._source is not None and words in self._source:
            return f"the model's chat template refuses the conversation: {words}"
        return f"the model's chat template failed ({type(error).__name__})"


class _TooMuchError(Exception):
    """A bound was reached."""


class _Steps:
    """What one rendering may still do."""

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._left = _MAX_STEPS
        self._deadline_s = clock_s() + _MAX_RENDERING_S

    def take(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise _TooMuchError(f"it ran for more than {_MAX_STEPS:,} steps")
        if self._clock_s() > self._deadline_s:
            raise _TooMuchError(f"it ran for more than {_MAX_RENDERING_S} s")


_steps: ContextVar[_Steps] = ContextVar("forebay_template_steps")


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    steps = _steps.get()
    for item in items:
        steps.take()
        yield item


def _join_bounded(parts: Iterable[str]) -> str:
    kept, character_count = [], 0
    for part in parts:
        character_count += len(part)
        if character_count > _MAX_CHARACTERS:
            raise _TooMuchError(f"its text is longer than {_MAX_CHARACTERS:,} characters")
        kept.append(part)
    return "".join(kept)


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}` marks what transformers trains on; here it stands for what it encloses."""

    tags = {"generation"}  # noqa: RUF012  # jinja's own declaration

    def parse(self, parser: Any) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        body: list[jinja2.nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


class _BoundedEnvironment(ImmutableSandboxedEnvironment):
    """transformers' settings; every loop round and every call takes a step, and products are kept small."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self, now: Callable[[], datetime]) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"])
        self.filters["tojson"] = _to_json
        self.filters["forebay_counted"] = _counted
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda format: now().strftime(format)  # noqa: A006  # templates may name it

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        template = super()._parse(source, name, filename)
        for loop in template.find_all(jinja2.nodes.For):
            loop.iter = jinja2.nodes.Filter(loop.iter, "forebay_counted", [], [], None, None, lineno=loop.lineno)
        return template

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  # jinja's signature
        _steps.get().take()
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if _product_size(operator, left, right) > _MAX_PRODUCT:
            raise _TooMuchError(f"it makes something too large by {operator}")
        return super().call_binop(context, operator, left, right)


def _product_size(operator: str, left: Any, right: Any) -> int:
    """Length of a repeated string or list, or how many bits an integer gets; other numbers do not grow."""
    for repeated, count in ((left, right), (right, left)):
        if isinstance(repeated, Sized) and isinstance(count, int):
            return len(repeated) * count
    if isinstance(left, int) and isinstance(right, int):
        return left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
    return 0


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Plain JSON: Jinja's own filter would escape for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)
