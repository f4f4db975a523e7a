"""Whether torch.compile would make the torch path faster on this machine: a decoder layer without its attention.

One layer of SmolLM2-135M's shapes, compiled once for each number of rows (full graph, static shapes) and used 30 times
with other weights, beside the same operations called one by one, as the torch path does. Rounds alternate; medians of
the rounds' quotients. "compiling" is paid by a process that has never seen the number of rows; with torch's cache on
disk it still takes the second figure. See docs/adr/011-torch-path-not-compiled-on-cpu.md.

Example:
  scripts/bench torch_compile --rounds 9
"""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from forebay.host.cores import usable_cores
from scripts.benchmarks.options import Options
from scripts.benchmarks.report import Figure, median, report

ROWS = (2, 4, 16, 64)
LAYERS, HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM = 30, 576, 1536, 9, 3, 64
EPS = 1e-5


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights in bfloat16; norms in float32."""

    qkv: Tensor
    output: Tensor
    gate_up: Tensor
    down: Tensor
    norms: tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Rows:
    """Inputs of a step of M rows: the residual stream, the attention's results, and rotations."""

    residual: Tensor
    mixed: Tensor
    cos: Tensor
    signed_sin: Tensor


Before = Callable[[Tensor, Layer, Tensor, Tensor], tuple[Tensor, Tensor]]
After = Callable[[Tensor, Tensor, Layer], Tensor]


def run(options: Options) -> None:
    """Measures and reports."""
    torch.set_num_threads(usable_cores())
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as cache, torch.inference_mode():
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        torch.manual_seed(0)
        layers = [_layer() for _ in range(LAYERS)]
        most = _rows(max(ROWS))
        cold_s = sum(_first_call_s(layers, _cut(most, count)) for count in ROWS)
        torch.compiler.reset()
        warm_s = sum(_first_call_s(layers, _cut(most, count)) for count in ROWS)
        compiled = _compiled()
        whole = _step(compiled, layers, most)
        for count in ROWS:
            rows = _cut(most, count)
            eager_s, compiled_s = _alternate(options.rounds, compiled, layers, rows)
            quotient = median([one / other for one, other in zip(eager_s, compiled_s, strict=True)])
            figures += [
                Figure(f"{count} rows, one by one", median(eager_s) * 1e3, "ms"),
                Figure(f"{count} rows, compiled: times as fast", quotient, "x", peer="one by one"),
                Figure(f"{count} rows, compiled: rows with other bits", _differing(compiled, layers, rows, whole), ""),
            ]
    figures += [
        Figure(f"compiling for {len(ROWS)} numbers of rows", cold_s, "s"),
        Figure(f"the same from the cache on disk, without importing torch ({len(ROWS)} x)", warm_s, "s"),
    ]
    report("torch_compile", figures)


def _before(residual: Tensor, layer: Layer, cos: Tensor, signed_sin: Tensor) -> tuple[Tensor, Tensor]:
    return _project(residual, layer.norms[0], layer.qkv, cos, signed_sin)


def _after(residual: Tensor, mixed: Tensor, layer: Layer) -> Tensor:
    return _feed(residual, mixed, layer.output, layer.norms[1], layer.gate_up, layer.down)


def _project(residual: Tensor, norm: Tensor, qkv: Tensor, cos: Tensor, signed_sin: Tensor) -> tuple[Tensor, Tensor]:
    heads = F.linear(_normed(residual, norm), qkv).view(len(residual), -1, HEAD_DIM)
    rotated = heads[:, : HEADS + KV_HEADS].reshape(-1, HEADS + KV_HEADS, 2, HEAD_DIM // 2)
    turned = rotated * cos + rotated.flip(2) * signed_sin
    return turned.to(torch.bfloat16).flatten(2), heads[:, HEADS + KV_HEADS :]


def _feed(residual: Tensor, mixed: Tensor, output: Tensor, norm: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    total = residual + F.linear(mixed, output)
    gate, up = F.linear(_normed(total, norm), gate_up).chunk(2, -1)
    return total + F.linear(F.silu(gate) * up, down)


def _normed(residual: Tensor, norm: Tensor) -> Tensor:
    return F.rms_norm(residual, (residual.shape[-1],), norm, EPS).to(torch.bfloat16)


def _compiled() -> tuple[Before, After]:
    project = torch.compile(_project, fullgraph=True, dynamic=False)
    feed = torch.compile(_feed, fullgraph=True, dynamic=False)

    def before(residual: Tensor, layer: Layer, cos: Tensor, signed_sin: Tensor) -> tuple[Tensor, Tensor]:
        return project(residual, layer.norms[0], layer.qkv, cos, signed_sin)

    def after(residual: Tensor, mixed: Tensor, layer: Layer) -> Tensor:
        return feed(residual, mixed, layer.output, layer.norms[1], layer.gate_up, layer.down)

    return before, after


def _step(parts: tuple[Before, After], layers: Sequence[Layer], rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    before, after = parts
    residual = rows.residual
    for layer in layers:
        queries, values = before(residual, layer, rows.cos, rows.signed_sin)
        residual = after(residual, rows.mixed, layer)
    return queries, values, residual


def _first_call_s(layers: Sequence[Layer], rows: Rows) -> float:
    began_s = time.perf_counter()
    _step(_compiled(), layers[:1], rows)
    return time.perf_counter() - began_s


def _alternate(
    rounds: int, compiled: tuple[Before, After], layers: Sequence[Layer], rows: Rows
) -> tuple[list[float], list[float]]:
    seconds: tuple[list[float], list[float]] = ([], [])
    ways = ((_before, _after), compiled)
    for number in range(rounds + 1):
        for way, times in zip(ways, seconds, strict=True):
            began_s = time.perf_counter()
            for _ in range(5):
                _step(way, layers, rows)
            if number > 0:  # the first round warms up
                times.append((time.perf_counter() - began_s) / 5)
    return seconds


def _differing(
    compiled: tuple[Before, After], layers: Sequence[Layer], rows: Rows, whole: tuple[Tensor, Tensor, Tensor]
) -> int:
    """Rows whose results have other bits than when computed among the most rows."""
    results = _step(compiled, layers, rows)
    return sum(
        any(not torch.equal(one[row], other[row]) for one, other in zip(results, whole, strict=True))
        for row in range(len(rows.residual))
    )


def _layer() -> Layer:
    def matrix(outputs: int, inputs: int) -> Tensor:
        return torch.randn(outputs, inputs).mul_(0.05).to(torch.bfloat16)

    return Layer(
        qkv=matrix((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN),
        output=matrix(HIDDEN, HIDDEN),
        gate_up=matrix(2 * INTERMEDIATE, HIDDEN),
        down=matrix(HIDDEN, INTERMEDIATE),
        norms=(torch.ones(HIDDEN), torch.ones(HIDDEN)),
    )


def _rows(count: int) -> Rows:
    return Rows(
        torch.randn(count, HIDDEN),
        torch.randn(count, HIDDEN).to(torch.bfloat16),
        torch.randn(count, 1, 1, HEAD_DIM // 2),
        torch.randn(count, 1, 2, HEAD_DIM // 2),
    )


def _cut(rows: Rows, count: int) -> Rows:
    return Rows(*(one[:count].clone() for one in (rows.residual, rows.mixed, rows.cos, rows.signed_sin)))
