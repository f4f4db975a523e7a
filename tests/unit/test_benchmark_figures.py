"""What the benchmarks' figures are made of."""

import numpy as np
import pytest

from scripts.benchmarks.divergence import Divergence, total
from scripts.benchmarks.report import Figure


def test_divergence_is_that_of_the_definition() -> None:
    reference, other = np.log(np.array([0.5, 0.25, 0.25], np.float32)), np.log(np.array([0.25, 0.5, 0.25], np.float32))
    both = Divergence()
    both.add(reference + 3, other - 2)  # logits are free up to a constant
    assert both.mean_kl == pytest.approx(0.5 * np.log(2) + 0.25 * np.log(0.5))
    same = Divergence()
    same.add(reference, reference)
    assert (both.top1, same.top1, same.mean_kl) == (0, 1, pytest.approx(0, abs=1e-12))
    assert total([both, same]).top1 == 0.5


@pytest.mark.parametrize(
    ("value", "target", "is_met"),
    [(2.0, ">= 2", True), (1.9, ">= 2", False), (2.1, "<= 2", False), (2.0, None, None), (None, ">= 2", None)],
)
def test_only_what_was_measured_is_judged(value: float | None, target: str | None, is_met: bool | None) -> None:
    assert Figure("name", value, "", target).is_met is is_met
