"""A process that loads the engine as a worker does, prints the first token after a prompt, and ends.

`python -m scripts.benchmarks.first_token MODEL`: `engine_start` measures it from outside.
"""

import random
import sys
from pathlib import Path

from forebay.engine.types import Slice
from forebay.host.cores import usable_cores
from forebay.models.model_file import open_model
from forebay.testing.native_runs import NativeSettings, native_run
from scripts.benchmarks.engine_start import PROMPT_TOKENS
from scripts.benchmarks.generation import random_prompt

_BLOCK_COUNT = 8


def main() -> None:
    """From the file to the token."""
    run = native_run(open_model(Path(sys.argv[1])), _BLOCK_COUNT, NativeSettings(threads=usable_cores()))
    sequence = run.sequence(random_prompt(random.Random(0), PROMPT_TOKENS), 1)
    run.step([Slice(sequence, PROMPT_TOKENS)])
    print(sequence.output_token_ids[0], flush=True)


if __name__ == "__main__":
    main()
