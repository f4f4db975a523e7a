"""llama.cpp, answering measurements. Runs in the environment that has llama-cpp-python.

The low-level API, so that neither Python's sampling nor its text handling is measured: a step's time is that of
llama_decode until its logits are there; choosing the largest logit is left out. Configuration:
  weights      the GGUF file itself, mapped
  threads      --threads, for generation and for prompts alike (n_threads, n_threads_batch)
  batches      n_batch = n_ubatch = 512; a prompt goes in batches of 512, and only its last token asks for logits
  sequences    one context for a single sequence, another with a sequence each and KV streams of their own for 16;
               their steps are one llama_batch with one token of every sequence
  attention    flash attention on, KV in float16
It was found fastest so: one thread decoded 1.10 times as fast with flash attention as without at a context of 32, 1.18
times with 16 sequences, and equally fast at 1,024.
"""

import argparse
import ctypes
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.benchmarks.answering import Answer, answer_all, claim_stdout

_ANSWERS = claim_stdout()

import llama_cpp  # noqa: E402  it may print
import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

_BATCH_TOKENS = 512
_MANY_SEQUENCES = 16
_SINGLE_CONTEXT_TOKENS, _MANY_CONTEXT_TOKENS = 4_608, 512  # of each sequence
_FLASH_ATTENTION = {"off": 0, "on": 1}


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line says."""

    threads: int
    flash_attention: str


class Context:
    """One context and its batch."""

    def __init__(self, model: Any, sequences: int, context_tokens: int, settings: Settings) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = sequences * context_tokens
        params.n_seq_max = sequences
        params.n_batch = params.n_ubatch = _BATCH_TOKENS
        params.n_threads = params.n_threads_batch = settings.threads
        params.flash_attn_type = _FLASH_ATTENTION[settings.flash_attention]
        params.kv_unified = False
        params.no_perf = True
        self._context = llama_cpp.llama_init_from_model(model, params)
        if not self._context:
            raise MemoryError("llama.cpp makes no context")
        self._vocabulary_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self._batch = llama_cpp.llama_batch_init(_BATCH_TOKENS, 0, 1)

    def forget(self) -> None:
        """Empties the KV."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)

    def compute(self, rows: list[tuple[int, int, int, bool]]) -> float:
        """Computes rows of (token id, position, sequence, whether logits are wanted). Returns the seconds it took."""
        self._batch.n_tokens = len(rows)
        for index, (token_id, position, sequence, wants_logits) in enumerate(rows):
            self._batch.token[index] = token_id
            self._batch.pos[index] = position
            self._batch.n_seq_id[index] = 1
            self._batch.seq_id[index][0] = sequence
            self._batch.logits[index] = wants_logits
        began_s = time.perf_counter()
        code = llama_cpp.llama_decode(self._context, self._batch)
        llama_cpp.llama_synchronize(self._context)
        seconds = time.perf_counter() - began_s
        if code:
            raise RuntimeError(f"llama_decode answered {code}")
        return seconds

    def logits(self, row: int) -> NDArray[np.float32]:
        """Of one row of the last computation; a view."""
        pointer = llama_cpp.llama_get_logits_ith(self._context, row)
        return np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (self._vocabulary_size,))


class LlamaCpp:
    """The loaded model."""

    def __init__(self, model_path: str, settings: Settings) -> None:
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(model_path.encode(), llama_cpp.llama_model_default_params())
        if not model:
            raise FileNotFoundError(model_path)
        self._single = Context(model, 1, _SINGLE_CONTEXT_TOKENS, settings)
        self._many = Context(model, _MANY_SEQUENCES, _MANY_CONTEXT_TOKENS, settings)

    def generate(self, command: dict[str, Any]) -> Answer:
        """Prompts one after the other, then steps of all sequences."""
        prompts: list[list[int]] = command["prompts"]
        context = self._single if len(prompts) == 1 else self._many
        context.forget()
        prefill_s, tokens = 0.0, []
        for sequence, prompt in enumerate(prompts):
            for start in range(0, len(prompt), _BATCH_TOKENS):
                chunk = prompt[start : start + _BATCH_TOKENS]
                prefill_s += context.compute(_rows(chunk, start, sequence, wanted={len(prompt) - 1}))
            tokens.append(int(context.logits(-1).argmax()))
        first_token_ids, step_s = list(tokens), []
        for step in range(command["steps"]):
            position = len(prompts[0]) + step
            step_s.append(context.compute([(token, position, index, True) for index, token in enumerate(tokens)]))
            tokens = [int(context.logits(row).argmax()) for row in range(len(tokens))]
        return {"prefill_s": prefill_s, "step_s": step_s, "first_token_ids": first_token_ids}

    def score(self, command: dict[str, Any]) -> Answer:
        """Logits after every token, in batches of 512 over the KV that came before."""
        token_ids: list[int] = command["token_ids"]
        self._single.forget()
        with Path(command["path"]).open("wb") as file:
            for start in range(0, len(token_ids), _BATCH_TOKENS):
                chunk = token_ids[start : start + _BATCH_TOKENS]
                self._single.compute(_rows(chunk, start, 0, wanted=set(range(start, start + len(chunk)))))
                file.writelines(self._single.logits(row).tobytes() for row in range(len(chunk)))
        return {"vocabulary_size": len(self._single.logits(-1))}


def _rows(chunk: list[int], start: int, sequence: int, wanted: set[int]) -> list[tuple[int, int, int, bool]]:
    return [(token, position, sequence, position in wanted) for position, token in enumerate(chunk, start)]


def main() -> None:
    """Loads the model and answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--flash-attention", choices=_FLASH_ATTENTION, default="on")
    arguments = parser.parse_args()
    engine = LlamaCpp(arguments.model, Settings(arguments.threads, arguments.flash_attention))
    features = llama_cpp.llama_print_system_info().decode()
    answer_all(_ANSWERS, f"{llama_cpp.__version__}: {features}", {"generate": engine.generate, "score": engine.score})


if __name__ == "__main__":
    main()
