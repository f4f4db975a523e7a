"""`forebay chat`: one question, or a conversation."""

import readline  # noqa: F401  # gives input() a history and line editing
import sys
from collections.abc import Sequence
from typing import Final

from forebay.cli.answer import figures, show_answer, show_figures
from forebay.cli.parsing import command_parser
from forebay.cli.program import program_name
from forebay.cli.request_flags import add_request_flags, request_options
from forebay.cli.target import add_target_flag, target_of
from forebay.client import Client, Message, RequestOptions, UnreachableError
from forebay.errors import ForebayError

_EXAMPLES: Final = """\
  forebay chat "What is the capital of France?"
  forebay chat --system "Answer in one word." --temperature 0
  forebay chat                       (Ctrl-C stops an answer, Ctrl-D ends)"""


def run(arguments: Sequence[str]) -> int:
    """Answers the message, or holds a conversation when there is none."""
    parser = command_parser("chat", "Talks with the model; keeps the conversation until it ends.", _EXAMPLES)
    parser.add_argument("message", nargs="?", metavar="MESSAGE", help="one question; without it: a conversation")
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before the conversation")
    add_target_flag(parser)
    add_request_flags(parser)
    given = parser.parse_args(arguments)
    messages: list[Message] = [] if given.system is None else [{"role": "system", "content": given.system}]
    with Client(target_of(given)) as client:
        if given.message is None:
            _converse(client, messages, request_options(given))
        else:
            messages.append({"role": "user", "content": given.message})
            stream = client.stream(messages=messages, **request_options(given))
            show_figures(show_answer(stream, sys.stdout), program_name())
    return 0


def _converse(client: Client, messages: list[Message], options: RequestOptions) -> None:
    """Turn by turn until the input ends. A turn that fails is taken back; a stopped one is kept as far as it got."""
    while (line := _next_line()) is not None:
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line})
        stream = client.stream(messages=messages, **options)
        try:
            print(figures(show_answer(stream, sys.stdout)), file=sys.stderr)
        except KeyboardInterrupt:
            print("(stopped)", file=sys.stderr)
        except UnreachableError:
            raise
        except ForebayError as error:
            print(f"forebay: {error.message} ({error.reason})", file=sys.stderr)
            messages.pop()
            continue
        messages.append({"role": "assistant", "content": stream.text})


def _next_line() -> str | None:
    """What the user says next; None at the end of input. Ctrl-C clears the line."""
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            return input(prompt)
        except KeyboardInterrupt:
            print(file=sys.stderr)
        except EOFError:
            if prompt:
                print(file=sys.stderr)
            return None
