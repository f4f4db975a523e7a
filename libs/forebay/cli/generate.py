"""`forebay generate`: continues a text."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from forebay.cli.answer import show_answer, show_figures
from forebay.cli.parsing import command_parser
from forebay.cli.program import program_name
from forebay.cli.request_flags import add_request_flags, request_options
from forebay.cli.target import add_target_flag, target_of
from forebay.client import Client
from forebay.errors import InvalidFieldError

_EXAMPLES: Final = """\
  forebay generate "Once upon a time" --max-tokens 50
  forebay generate "1, 2, 3," --temperature 0 --stop 7 --json
  cat story.txt | forebay generate - --max-tokens 200
  forebay generate "x" --mode local --temperature 0"""


def run(arguments: Sequence[str]) -> int:
    """Answers one raw prompt; Ctrl-C cancels the request."""
    parser = command_parser("generate", "Continues a text, without any chat template.", _EXAMPLES)
    parser.add_argument("prompt", metavar="PROMPT", help="the text; - reads it from standard input")
    parser.add_argument("--json", action="store_true", help="print the whole result as JSON at the end")
    parser.add_argument("--no-stream", action="store_true", help="print the text only when it is complete")
    add_target_flag(parser)
    add_request_flags(parser)
    given = parser.parse_args(arguments)
    prompt = _standard_input() if given.prompt == "-" else given.prompt
    with Client(target_of(given)) as client:
        if given.json:
            completion = client.generate(prompt, **request_options(given))
            print(json.dumps(asdict(completion), ensure_ascii=False, indent=2))
            return 0
        if given.no_stream:
            completion = client.generate(prompt, **request_options(given))
            print(completion.text)
        else:
            completion = show_answer(client.stream(prompt, **request_options(given)), sys.stdout)
    show_figures(completion, program_name())
    return 0


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidFieldError(f"standard input is not UTF-8 text: byte {error.start}", field="text") from error
