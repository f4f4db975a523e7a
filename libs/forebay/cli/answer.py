"""An answer on a terminal: its text as it comes, then one line of figures."""

import sys
import unicodedata
from typing import Final, TextIO

from forebay.client import BlockingStream, Completion

_LEAST_RATED_TOKENS: Final = 2


def show_answer(stream: BlockingStream, output: TextIO) -> Completion:
    """Writes the text as it arrives and a final line break. Ctrl-C cancels the request and is raised on."""
    is_terminal = output.isatty()
    ends_line = True
    try:
        for chunk in stream:
            if chunk.text:
                output.write(_harmless(chunk.text) if is_terminal else chunk.text)
                output.flush()
                ends_line = chunk.text.endswith("\n")
    finally:
        if not ends_line:
            output.write("\n")
            output.flush()
    return stream.completion


def show_figures(completion: Completion, program: str) -> None:
    """Writes the line of figures, and how to see more, to stderr."""
    print(f"{figures(completion)}\n{program} trace {completion.trace_id}", file=sys.stderr)


def figures(completion: Completion) -> str:
    """TTFT, tokens per second after the first, tokens, cached tokens, mode, trace id; on one line."""
    usage, timings = completion.usage, completion.timings
    parts = [f"TTFT {timings.time_to_first_token_s * 1000:.0f} ms"]
    rate = tokens_per_second(completion)
    if rate is not None:
        parts.append(f"{rate:.1f} tokens/s")
    parts.append("1 token" if usage.completion_tokens == 1 else f"{usage.completion_tokens} tokens")
    parts.append(f"{usage.cached_tokens} of {usage.prompt_tokens} prompt tokens cached")
    if completion.plan.mode is not None:
        parts.append(completion.plan.mode.value)
    return " · ".join([*parts, f"trace {completion.trace_id}"])


def tokens_per_second(completion: Completion) -> float | None:
    """Rate of the tokens after the first, as the caller saw it; None when they are too few to have one.

    Not more than the worker's: where the first token came together with later ones, those took no time to be seen.
    """
    timings, later_tokens = completion.timings, completion.usage.completion_tokens - 1
    later_s = max(timings.total_s - timings.time_to_first_token_s, timings.decode_s)
    return later_tokens / later_s if later_tokens >= _LEAST_RATED_TOKENS and later_s > 0 else None


def _harmless(text: str) -> str:
    """The text without characters that would command the terminal."""
    return "".join(
        one if one in "\n\t" or unicodedata.category(one) != "Cc" else "\N{REPLACEMENT CHARACTER}" for one in text
    )
