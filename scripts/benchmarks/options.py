"""What the command line of a benchmark can say."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Options:
    """How a benchmark is run.

    rounds: measurements of each figure; their median counts. peers: names of other engines to run beside ours, for
    the benchmarks that know some. trace: file of requests to replay, for the benchmark that does.
    """

    rounds: int
    peers: tuple[str, ...] = ()
    activation_bits: int = 16  # of our native engine
    trace: Path | None = None
