"""What computing a request takes, in seconds, joules and money, on a worker whose rates are known. Pure.

The formulas are the design's (section 5). For n prompt tokens of which p are cached, and a model of N parameters in L
layers with queries of d numbers, W bytes of weights and κ bytes of KV per token:

    prefill    = t0 + (2·N·(n−p) + 2·L·d·(n²−p²)) / (FLOP/s reached)
    decode step = t0 + max((W + κ·Σ contexts) / (bytes/s reached), 2·N·batch / (FLOP/s reached))
    transfer   = max(0, (n−p)·κ / B(size) − prefill) + tail; 0 on one node
    energy     = watts · busy seconds; money = price · busy seconds

Knows no worker, no load and no plan.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from forebay.errors import InvalidFieldError

SECONDS_PER_HOUR: Final = 3600.0

Amount = Any
"""A number, or an array of one for each of several workers."""


@dataclass(frozen=True, slots=True)
class ModelSize:
    """A model as a worker computes it. Raises InvalidFieldError unless all are positive.

    parameters: N, read per token. weight_bytes: W, read per step. kv_token_bytes: κ, all layers together. layers: L.
    width: d, numbers of one token's query in a layer, all heads together.
    """

    parameters: int
    weight_bytes: int
    kv_token_bytes: int
    layers: int
    width: int

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise InvalidFieldError(f"{name} must be at least 1, not {getattr(self, name)}", field=name)


@dataclass(frozen=True, slots=True)
class ChipRates:
    """What a worker reaches, not what its data sheet says. Raises InvalidFieldError for what no chip can have.

    step_overhead_s: t0, of every step whatever is in it. flops_per_s: of the model's operations while it computes a
    prompt. bytes_per_s: of weights and KV while it generates. watts: while busy. usd_per_hour: of its chip.
    """

    step_overhead_s: float
    flops_per_s: float
    bytes_per_s: float
    watts: float = 0.0
    usd_per_hour: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flops_per_s", "bytes_per_s"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise InvalidFieldError(f"{name} must be positive and finite, not {getattr(self, name)}", field=name)
        for name in ("step_overhead_s", "watts", "usd_per_hour"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise InvalidFieldError(f"{name} must be finite and not negative: {getattr(self, name)}", field=name)


@dataclass(frozen=True, slots=True)
class LinkRates:
    """Between two nodes. Raises InvalidFieldError for what no link can have.

    bytes_per_s: of a long transfer. latency_s: before its first byte.
    """

    bytes_per_s: float
    latency_s: float

    def __post_init__(self) -> None:
        if not 0.0 < self.bytes_per_s < float("inf"):
            raise InvalidFieldError(
                f"bytes_per_s must be positive and finite, not {self.bytes_per_s}", field="bytes_per_s"
            )
        if not 0.0 <= self.latency_s < float("inf"):
            raise InvalidFieldError(f"latency_s must be finite and not negative: {self.latency_s}", field="latency_s")

    def transfer_s(self, size_bytes: Amount) -> Amount:
        """Of so many bytes in one piece: size / B(size), where a short transfer never reaches `bytes_per_s`."""
        return (self.latency_s + size_bytes / self.bytes_per_s) * (size_bytes > 0)


DEFAULT_LINK: Final = LinkRates(bytes_per_s=1.25e9, latency_s=0.0005)
"""10 Gbit/s Ethernet."""


class StepCost:
    """One model on one chip: its formulas with all constants worked out, since planning asks for thousands a second.

    Energy and money of so many busy seconds are `watts` and `usd_per_s` times these. Of several `stacked` ones all
    figures are arrays, and so may be what is asked.
    """

    __slots__ = (
        "_attention_s",
        "_kv_read_s",
        "_token_s",
        "_weights_s",
        "kv_token_bytes",
        "step_overhead_s",
        "usd_per_s",
        "watts",
    )

    def __init__(self, model: ModelSize, rates: ChipRates) -> None:
        self.step_overhead_s: Amount = rates.step_overhead_s
        self.kv_token_bytes: Amount = model.kv_token_bytes
        self._token_s = 2.0 * model.parameters / rates.flops_per_s
        self._attention_s = 2.0 * model.layers * model.width / rates.flops_per_s
        self._weights_s = model.weight_bytes / rates.bytes_per_s
        self._kv_read_s = model.kv_token_bytes / rates.bytes_per_s
        self.watts: Amount = rates.watts
        self.usd_per_s: Amount = rates.usd_per_hour / SECONDS_PER_HOUR

    @classmethod
    def stacked(cls, costs: "Sequence[StepCost]") -> "StepCost":
        """All of these as one."""
        together = cls.__new__(cls)
        for name in cls.__slots__:
            setattr(together, name, np.array([getattr(one, name) for one in costs], np.float64))
        return together

    def prefill_s(self, prompt_tokens: Amount, cached_tokens: Amount) -> Amount:
        """Seconds to compute what of a prompt is not cached; 0 when nothing is left."""
        rest_tokens = prompt_tokens - cached_tokens
        pairs = rest_tokens * (prompt_tokens + cached_tokens)  # n² − p²
        seconds = self.step_overhead_s + rest_tokens * self._token_s + pairs * self._attention_s
        return seconds * (rest_tokens > 0)

    def decode_step_s(self, batch: Amount, context_tokens: Amount) -> Amount:
        """Seconds of one step that generates a token for each of `batch` sequences.

        context_tokens: of all of them together.
        """
        memory_s = self._weights_s + context_tokens * self._kv_read_s
        arithmetic_s = batch * self._token_s
        return self.step_overhead_s + np.maximum(memory_s, arithmetic_s)


def transfer_exposed_s(link: LinkRates, kv_bytes: Amount, prefill_s: Amount, tail_bytes: Amount) -> Amount:
    """Seconds for which a request waits for KV after its prefill.

    kv_bytes: of all that is computed elsewhere; it moves while later
    chunks are computed. tail_bytes: of the last part, which cannot move before the prefill is over.
    """
    beside_s = np.maximum(0.0, link.transfer_s(kv_bytes) - prefill_s) * (kv_bytes > 0)
    return beside_s + link.transfer_s(np.minimum(tail_bytes, kv_bytes))
