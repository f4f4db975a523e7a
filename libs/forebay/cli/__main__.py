"""The `forebay` command: finds the subcommand, runs it, and turns errors into one line and an exit code.

Exit codes: 0 done; 1 it failed; 2 wrong usage, or something cannot start; 130 interrupted by Ctrl-C.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Final, Protocol, cast

from forebay.errors import ForebayError, RemoteError, StartError

_SUMMARIES: Final = {
    "up": "start the mesh on this machine and, given a prompt, answer it",
    "down": "stop the mesh and leave nothing behind",
    "status": "show each service: health, memory, load",
    "drain": "take a worker out of service without losing what it runs",
    "roles": "say how many workers should prefill and how many decode, and switch them",
    "restart": "replace the services of the mesh one by one while it serves",
    "generate": "continue a text",
    "chat": "talk with the model",
    "explain": "say why a request was planned as it was",
    "chips": "list chip classes, and measure what this machine reaches as one",
    "kv": "show and steer what the KV-cache service keeps",
    "trace": "show where the time of a request went",
}
_INTERRUPTED: Final = 130


class _Command(Protocol):
    def run(self, arguments: Sequence[str]) -> int: ...


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    sys.exit(_run(given))


def _run(given: Sequence[str]) -> int:
    if not given or given[0] in {"-h", "--help", "help"}:
        print(_overview())
        return 0
    if given[0] == "--version":
        print(f"forebay {version('forebay')}")
        return 0
    name, *rest = given
    if name not in _SUMMARIES:
        return _failed(f"there is no command {name!r}; there are {', '.join(_SUMMARIES)}", 2)
    try:
        # Only what is asked for is loaded: `forebay --help` and `forebay status` stay quick.
        command = cast("_Command", importlib.import_module(f"forebay.cli.{name}"))
        return command.run(rest)
    except StartError as error:
        return _failed(error.message, 2)
    except ForebayError as error:
        return _failed(_described(error), 1)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # Who read our output has gone; what is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _overview() -> str:
    commands = "\n".join(f"  {name:<10} {summary}" for name, summary in _SUMMARIES.items())
    return (
        "usage: forebay COMMAND [OPTIONS]\n\nServes language models from a mixed fleet of chips.\n\n"
        f"commands:\n{commands}\n\nforebay COMMAND --help says more."
    )


def _described(error: ForebayError) -> str:
    """One line: what is wrong, which reason and field, when to try again."""
    facts = [] if isinstance(error, RemoteError) else [error.reason]
    if error.field is not None:
        facts.append(f"field {error.field}")
    if error.retry_after_s is not None:
        facts.append(f"try again in {error.retry_after_s:g} s")
    return f"{error.message} ({', '.join(facts)})" if facts else error.message


def _failed(line: str, exit_code: int) -> int:
    sys.stdout.flush()
    print(f"forebay: {line}", file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    main()
