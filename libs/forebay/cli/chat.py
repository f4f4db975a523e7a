"""`forebay chat`: one question, or a conversation."""

import json
import readline  # noqa: F401  # gives input() a history and line editing
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from forebay.cli.answer import figures, show_answer, show_figures
from forebay.cli.parsing import command_parser
from forebay.cli.program import program_name
from forebay.cli.request_flags import add_request_flags, request_options
from forebay.cli.target import add_target_flag, target_of
from forebay.client import BlockingStream, Client, Message, RequestOptions, UnreachableError
from forebay.errors import ForebayError

_EXAMPLES: Final = """\
  forebay chat "What is the capital of France?"
  forebay chat --system "Answer in one word." --temperature 0
  forebay chat "Say hello." --logprobs 2 --json
  forebay chat < questions.txt       one question a line; exit code 1 if one failed
  forebay chat                       (Ctrl-C stops an answer, Ctrl-D ends)"""


def run(arguments: Sequence[str]) -> int:
    """Answers the message, or holds a conversation when there is none."""
    parser = command_parser("chat", "Talks with the model; keeps the conversation until it ends.", _EXAMPLES)
    parser.add_argument("message", nargs="?", metavar="MESSAGE", help="one question; without it: a conversation")
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before the conversation")
    parser.add_argument(
        "--json", action="store_true", help="print the whole result as JSON; in a conversation, each turn's on one line"
    )
    add_target_flag(parser)
    add_request_flags(parser)
    given = parser.parse_args(arguments)
    messages: list[Message] = [] if given.system is None else [{"role": "system", "content": given.system}]
    with Client(target_of(given)) as client:
        if given.message is None:
            failed_count = _converse(client, messages, request_options(given), is_json=given.json)
            # Who sits at a terminal has seen it.
            return 1 if failed_count and not sys.stdin.isatty() else 0
        messages.append({"role": "user", "content": given.message})
        if given.json:
            completion = client.chat(messages, **request_options(given))
            print(json.dumps(asdict(completion), ensure_ascii=False, indent=2))
        else:
            stream = client.stream(messages=messages, **request_options(given))
            show_figures(show_answer(stream, sys.stdout), program_name())
    return 0


def _converse(client: Client, messages: list[Message], options: RequestOptions, *, is_json: bool) -> int:
    """Turn by turn until the input ends; returns how many turns failed.

    A turn that fails is taken back; a stopped one is kept as far as it got.
    """
    failed_count = 0
    while (line := _next_line()) is not None:
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line})
        stream = client.stream(messages=messages, **options)
        try:
            _show_turn(stream, is_json=is_json)
        except KeyboardInterrupt:
            print("(stopped)", file=sys.stderr)
        except UnreachableError:
            raise
        except ForebayError as error:
            print(f"forebay: {error.message} ({error.reason})", file=sys.stderr)
            messages.pop()
            failed_count += 1
            continue
        messages.append({"role": "assistant", "content": stream.text})
    return failed_count


def _show_turn(stream: BlockingStream, *, is_json: bool) -> None:
    if not is_json:
        print(figures(show_answer(stream, sys.stdout)), file=sys.stderr)
        return
    for _ in stream:
        pass
    print(json.dumps(asdict(stream.completion), ensure_ascii=False), flush=True)


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
