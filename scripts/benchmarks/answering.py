"""How a process that measures is asked: one JSON object a line on stdin, one a line on stdout. Knows no engine.

Also runs in other engines' environments, so it imports nothing but the standard library. The first line that a process
writes, before anything is asked, is {"ready": "its configuration, for people"}. What it is asked is
{"do": "something", ...}; what it cannot do it answers with {"error": "why"}. Other engines can do this:

  {"do": "generate", "prompts": [[token ids]], "steps": N}
      -> {"prefill_s": s, "step_s": [s, ...], "first_token_ids": [id, ...]}
  {"do": "score", "token_ids": [ids], "path": "FILE"}     raw float32 logits after each of the tokens, into FILE
      -> {"vocabulary_size": N}
"""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

_PR_SET_PDEATHSIG = 1

Answer = dict[str, Any]
Ability = Callable[[dict[str, Any]], Answer]


def claim_stdout() -> TextIO:
    """The pipe to whoever asks; from now on everything else that this process prints goes to stderr.

    To be called before the engine is imported. Also sees to it that the process ends with the one that started it,
    which may have stopped it by a signal and died before it let it go on.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def answer_all(answers: TextIO, configuration: str, abilities: Mapping[str, Ability]) -> None:
    """Says that it is ready, then answers until stdin ends."""
    _tell(answers, {"ready": configuration})
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = abilities[command.pop("do")](command)
        except Exception as error:  # the one who asks decides what that means
            answer = {"error": f"{type(error).__name__}: {error}"}
        _tell(answers, answer)


def _tell(answers: TextIO, answer: Answer) -> None:
    print(json.dumps(answer), file=answers, flush=True)
