"""What a fleet file may say, and that everything else is refused with file, key and reason."""

from pathlib import Path

import pytest

from forebay.chips.chip_class import BUILT_IN, DEFAULT_USD_PER_HOUR, DEFAULT_WATTS, chip_class_named
from forebay.chips.fleet_file import ClassFigures, FleetFile, read_fleet_file
from forebay.errors import StartError
from forebay.routing.cost import DEFAULT_LINK

COMPUTE = chip_class_named("cpu-compute")


def written(folder: Path, text: str) -> Path:
    path = folder / "fleet.yaml"
    path.write_text(text)
    return path


def test_without_a_file_every_class_has_figures() -> None:
    for chip_class in BUILT_IN.values():
        figures = read_fleet_file(None).figures_of(chip_class)
        assert (figures.watts, figures.usd_per_hour) == (DEFAULT_WATTS, DEFAULT_USD_PER_HOUR)
        assert figures.step_overhead_s is not None
        assert figures.step_overhead_s > 0
        assert figures.flops_per_s is None, "only a measurement knows"


def test_what_is_said_replaces_what_is_known_and_nothing_else(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "chip_classes:\n  cpu-compute: {watts: 45, flops_per_s: 4e11}\nlink: {latency_s: 0}\n",
    )
    fleet = read_fleet_file(path)
    assert fleet.figures_of(COMPUTE) == ClassFigures(45.0, DEFAULT_USD_PER_HOUR, COMPUTE.step_overhead_s, 4e11, None)
    assert fleet.figures_of(BUILT_IN["cpu-f32"]) == FleetFile().figures_of(BUILT_IN["cpu-f32"])
    assert (fleet.link.bytes_per_s, fleet.link.latency_s) == (DEFAULT_LINK.bytes_per_s, 0.0)


@pytest.mark.parametrize("text", ["", "chip_classes:\n", "link:\nchip_classes: {cpu-f32: }\n"])
def test_what_says_nothing_changes_nothing(tmp_path: Path, text: str) -> None:
    fleet = read_fleet_file(written(tmp_path, text))
    assert fleet.figures_of(COMPUTE) == FleetFile().figures_of(COMPUTE)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("chips: {}", "the file: unknown key 'chips'; there are chip_classes, link"),
        ("chip_classes: {abacus: {watts: 1}}", "chip_classes: unknown chip class 'abacus'; there are cpu-bandwidth"),
        (
            "chip_classes: {cpu-compute: {watt: 1}}",
            "chip_classes.cpu-compute: unknown key 'watt'; there are bytes_per_s",
        ),
        ("chip_classes: {cpu-compute: {flops_per_s: 0}}", "chip_classes.cpu-compute.flops_per_s: must be more than 0"),
        ("chip_classes: {cpu-compute: {watts: -1}}", "chip_classes.cpu-compute.watts: must be at least 0"),
        (
            "chip_classes: {cpu-compute: {watts: .inf}}",
            "chip_classes.cpu-compute.watts: must be at least 0 and at most 1e+06",
        ),
        ("chip_classes: {cpu-compute: {flops_per_s: 4.0e+40}}", "must be more than 0 and at most 1e+19, not 4e+40"),
        ("chip_classes: {cpu-compute: {step_overhead_s: 300}}", "must be at least 0 and at most 10, not 300"),
        (
            "chip_classes: {cpu-compute: {watts: .nan}}",
            "chip_classes.cpu-compute.watts: must be at least 0 and at most 1e+06",
        ),
        ("chip_classes: {cpu-compute: {watts: true}}", "chip_classes.cpu-compute.watts: must be a number, not True"),
        ("chip_classes: {cpu-compute: {watts: some}}", "chip_classes.cpu-compute.watts: must be a number, not 'some'"),
        ("chip_classes: {cpu-compute: 5}", "chip_classes.cpu-compute: must have keys and values, not 5"),
        ("chip_classes: [cpu-compute]", "chip_classes: must have keys and values"),
        ("link: {bytes_per_s: 0}", "link.bytes_per_s: must be more than 0"),
        ("link: {speed: 1}", "link: unknown key 'speed'"),
        ("just a text", "the file: must have keys and values, not 'just a text'"),
        ("a: [", "is no YAML"),
    ],
)
def test_a_refusal_names_file_key_and_reason(tmp_path: Path, text: str, told: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(StartError) as refusal:
        read_fleet_file(path)
    assert refusal.value.message.startswith(f"{path}: ")
    assert told in refusal.value.message


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="cannot be read: No such file"):
        read_fleet_file(tmp_path / "none.yaml")


def test_a_class_that_no_worker_serves_is_refused_with_file_and_key(tmp_path: Path) -> None:
    path = written(tmp_path, "chip_classes: {cpu-compute: {watts: 5}, cpu-f32: {watts: 5}}")
    content = read_fleet_file(path)
    content.check_served(["cpu-compute", "cpu-f32"])
    with pytest.raises(StartError) as caught:
        content.check_served(["cpu-compute", "cpu-bandwidth"])
    assert caught.value.message == (
        f"{path}: chip_classes: no worker of this mesh is of class 'cpu-f32'; they are cpu-bandwidth and cpu-compute"
    )
    read_fleet_file(None).check_served([])
