"""`forebay chips`: what it lists, and what it does to a fleet file."""

import json
from pathlib import Path

import pytest

from forebay.chips.chip_class import BUILT_IN
from forebay.chips.fleet_file import read_fleet_file
from forebay.cli import chips
from forebay.engine.rate_measurement import MeasuredRates
from forebay.errors import StartError

RATES = MeasuredRates(123_456e6, 7_890e6, 100.0, 20.0, 80.0)


def test_ls_names_every_class(capsys: pytest.CaptureFixture[str]) -> None:
    assert chips.run(["ls", "--json"]) == 0
    assert {one["name"] for one in json.loads(capsys.readouterr().out)} == set(BUILT_IN)
    assert chips.run(["ls"]) == 0
    assert all(name in capsys.readouterr().out for name in ("cpu-compute",))


def test_an_unknown_class_is_refused_before_anything_is_measured() -> None:
    with pytest.raises(StartError, match="unknown chip class 'abacus'"):
        chips.run(["calibrate", "abacus"])


@pytest.mark.parametrize("text", [None, "", "link: {latency_s: 0.001}\nchip_classes: {cpu-compute: {watts: 5}}"])
def test_rates_are_stored_beside_what_is_there(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "fleet.yaml"
    if text is not None:
        path.write_text(text)
    chips._store(path, {"cpu-compute": RATES})
    content = read_fleet_file(path)
    figures = content.chip_classes["cpu-compute"]
    assert (figures.flops_per_s, figures.bytes_per_s) == (123.5e9, 7.89e9)
    assert figures.watts == (5 if text else None)
    assert content.link.latency_s == (0.001 if text else 0.0005)
