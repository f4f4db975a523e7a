"""Kept peaks: used by whoever runs on that machine, measured anew when they are not usable, by one process only."""

import dataclasses
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from forebay.engine.peaks_file import MOST_MEASURINGS, Machine, PeaksFile, known_peaks, learn_peaks
from forebay.errors import StartError
from forebay.host.cores import usable_cores
from forebay.host.cpu_model import cpu_model
from forebay.host.file_lock import locked
from forebay.kernels.cpu.library import load_library
from forebay.kernels.cpu.peaks import DisturbedError
from forebay.kernels.peaks import Arithmetic, Peaks

MACHINE = Machine("a processor", 4, "forebay-avx2-0123.so")
PEAKS = Peaks(4, {Arithmetic.F32: 1.0, Arithmetic.BF16: 2.0, Arithmetic.INT8: 4.0}, 9.0, 5.0)


def refuse() -> Peaks:
    raise AssertionError("measured although it is kept")


def test_what_was_measured_is_kept(tmp_path: Path) -> None:
    file = PeaksFile(MACHINE, tmp_path / "peaks")
    assert file.read() is None
    assert file.learn(lambda: PEAKS) == PEAKS
    assert PeaksFile(MACHINE, tmp_path / "peaks").read() == PEAKS


@pytest.mark.parametrize("change", [{"cpu": "another"}, {"cores": 8}, {"library": "other.so"}, {"version": 0}])
def test_another_machine_measures_for_itself(tmp_path: Path, change: dict[str, object]) -> None:
    PeaksFile(MACHINE, tmp_path).learn(lambda: PEAKS)
    other = dataclasses.replace(MACHINE, **change)
    assert PeaksFile(other, tmp_path).read() is None
    # Even where its file has our name.
    (tmp_path / other.file_name).write_bytes((tmp_path / MACHINE.file_name).read_bytes())
    assert PeaksFile(other, tmp_path).read() is None
    assert PeaksFile(MACHINE, tmp_path).read() == PEAKS


DAMAGES = {
    "empty": lambda text: "",
    "cut short": lambda text: text[: len(text) // 2],
    "no object": lambda text: "[1]",
    "without a rate": lambda text: text.replace("bf16", "bf17"),
    "no number": lambda text: text.replace("9.0", '"fast"'),
    "nothing a second": lambda text: text.replace("9.0", "0"),
    "NaN": lambda text: text.replace("9.0", "NaN"),
    "not text": lambda text: "\udcff",
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_cannot_be_used_is_measured_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    file, path = PeaksFile(MACHINE, tmp_path), tmp_path / MACHINE.file_name
    file.learn(lambda: PEAKS)
    path.write_text(DAMAGES[name](path.read_text()), errors="surrogateescape")
    with caplog.at_level(logging.WARNING):
        assert file.read() is None
    assert "measuring them again" in caplog.text
    again = dataclasses.replace(PEAKS, read_bytes_per_s=7.0)
    assert file.learn(lambda: again) == again
    assert file.read() == again


def test_a_measuring_that_is_given_up_keeps_nothing(tmp_path: Path) -> None:
    def give_up() -> Peaks:
        raise DisturbedError

    file = PeaksFile(MACHINE, tmp_path)
    with pytest.raises(DisturbedError):
        file.learn(give_up)
    assert file.learn(lambda: PEAKS) == PEAKS


def test_a_folder_that_cannot_be_written_costs_the_keeping_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "peaks"
    folder.write_text("a file where the folder should be")
    assert PeaksFile(MACHINE, folder).learn(lambda: PEAKS) == PEAKS
    assert "peaks cannot be" in caplog.text


MEASURING = """
import sys
from pathlib import Path
from forebay.engine.peaks_file import Machine, PeaksFile
from forebay.kernels.peaks import Arithmetic, Peaks

def measure():
    print("measuring", flush=True)
    sys.stdin.readline()
    return Peaks(4, dict.fromkeys(Arithmetic, 1.0), 2.0, 1.0)

print(PeaksFile(Machine("m", 4, "l"), Path(sys.argv[1])).learn(measure).read_bytes_per_s)
"""


def test_two_processes_measure_one_after_the_other(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEASURING, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as first:
        assert first.stdout.readline() == "measuring\n"
        with subprocess.Popen(command, **pipes) as second:
            assert first.communicate("\n")[0] == "2.0\n"
            assert second.communicate("\n")[0] == "measuring\n2.0\n"
    (path,) = tmp_path.glob("*.json")
    assert json.loads(path.read_text())["measurings"] == 2, "the second came after the first, and counted on"


def test_this_machine_is_measured_and_its_peaks_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_library()  # compiled into the cache that all runs share, before it is another one
    monkeypatch.setenv("FOREBAY_CACHE", str(tmp_path))
    assert known_peaks() is None
    with pytest.raises(DisturbedError):
        learn_peaks(lambda: False)
    asked = []
    peaks = learn_peaks(lambda: not asked.append(True))
    assert len(asked) > 15, "between all readings"
    assert known_peaks() == peaks
    with pytest.raises(DisturbedError):
        learn_peaks(lambda: False)
    assert known_peaks() == peaks, "what is kept stays"
    assert peaks.threads == usable_cores()
    assert 0 < peaks.single_read_bytes_per_s < 2 * peaks.read_bytes_per_s
    (path,) = (tmp_path / "peaks").glob("*.json")
    machine = json.loads(path.read_text())["machine"]
    assert (machine["cpu"], machine["cores"]) == (cpu_model(), usable_cores())


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor\t: 0\nmodel name\t: X 9\nstepping\t: 1\n\nprocessor\t: 1\nmodel name\t: Y\n", "X 9 1"),
        ("cpu family : 25\nmodel : 17\nmodel name : Maker\n", "Maker 25 17"),
    ],
)
def test_a_processor_is_called_by_its_name_and_model(tmp_path: Path, text: str, name: str) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_model(tmp_path / "cpuinfo") == name


def test_a_processor_that_is_not_told_has_its_architecture(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\n")
    assert cpu_model(tmp_path / "cpuinfo") == cpu_model(tmp_path / "absent") != ""


def test_whoever_does_not_want_to_wait_for_another_process_need_not(tmp_path: Path) -> None:
    def give_up() -> None:
        raise DisturbedError

    file = PeaksFile(MACHINE, tmp_path)
    with locked((tmp_path / MACHINE.file_name).with_suffix(".lock")), pytest.raises(DisturbedError):
        file.learn(refuse, on_wait=give_up)


def test_a_reading_that_is_no_rate_is_not_kept(tmp_path: Path) -> None:
    file = PeaksFile(MACHINE, tmp_path)
    with pytest.raises(StartError):
        file.learn(lambda: dataclasses.replace(PEAKS, read_bytes_per_s=0.0))
    assert file.read() is None


def test_later_measurings_raise_what_a_disturbed_one_left_too_low_and_end(tmp_path: Path) -> None:
    file, low = PeaksFile(MACHINE, tmp_path), dataclasses.replace(PEAKS, read_bytes_per_s=1.0)
    assert file.learn(lambda: low) == low
    assert file.learn(lambda: PEAKS) == PEAKS
    assert file.learn(lambda: low) == PEAKS
    for _ in range(MOST_MEASURINGS - 3):
        file.learn(lambda: low)
    assert file.learn(refuse) == PEAKS
