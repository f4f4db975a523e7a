"""The peaks of this machine, measured a few times and kept in the cache folder for all workers that run on it.

Knows what makes a kept result another machine's, and that one process measures at a time. When it is a good moment to
measure, its caller knows.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from forebay.errors import StartError
from forebay.host.cores import usable_cores
from forebay.host.cpu_model import cpu_model
from forebay.host.file_lock import locked
from forebay.host.whole_file import write_whole
from forebay.kernels.cpu.library import NativeLibrary, load_library
from forebay.kernels.cpu.peaks import DisturbedError, measure_peaks
from forebay.kernels.peaks import Arithmetic, Peaks
from forebay.models.cache_folder import cache_dir

MEASURING_VERSION: Final = 2
"""Goes up whenever peaks measured before must not be used any more."""

MOST_MEASURINGS: Final = 5
"""Further ones, of workers that start later: one that was disturbed unseen does not stay."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Machine:
    """What peaks depend on. library: name of the compiled kernels' file, which differs with sources and flags."""

    cpu: str
    cores: int
    library: str
    version: int = MEASURING_VERSION

    @property
    def file_name(self) -> str:
        """Of its peaks in the cache: machines that share the folder have a file each."""
        digest = hashlib.sha256(repr(asdict(self)).encode()).hexdigest()
        return f"{digest[:16]}.json"


@dataclass(frozen=True, slots=True)
class _Kept:
    """The best of so many measurings."""

    peaks: Peaks
    measurings: int


class PeaksFile:
    """One machine's peaks in a folder."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        self._machine = machine
        self._path = folder / machine.file_name

    def read(self) -> Peaks | None:
        """What is kept; None: nothing, or nothing that can be used."""
        kept = self._kept()
        return None if kept is None else kept.peaks

    def learn(self, measure: Callable[[], Peaks], on_wait: Callable[[], None] = lambda: None) -> Peaks:
        """The best of what is kept and what `measure` says now; after MOST_MEASURINGS what is kept, unmeasured.

        What nobody of this node sees, such as other programs, can only lower a reading. Of several processes one
        measures at a time; on_wait: called before it waits for another, what it raises ends the call. A folder that
        cannot be written costs the keeping only. Raises what `measure` raises, and StartError if what it says makes no
        sense; then all stays as it was.
        """
        with ExitStack() as lock:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                lock.enter_context(locked(self._path.with_suffix(".lock"), on_wait))
            except OSError as error:
                self._warn("locked", error)
            kept = self._kept()
            if kept is not None and kept.measurings >= MOST_MEASURINGS:
                return kept.peaks
            measured = measure()
            if not _is_sensible(measured):
                raise StartError(f"a reading is no rate: {measured}")
            best = _Kept(measured, 1) if kept is None else _Kept(_best(kept.peaks, measured), kept.measurings + 1)
            try:
                write_whole(self._path, _content(best, self._machine))
            except OSError as error:
                self._warn("kept", error)
            return best.peaks

    def _kept(self) -> "_Kept | None":
        try:
            content = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            _log.warning("peaks %s cannot be read (%s); measuring them again", self._path.name, error)
            return None
        kept = _kept(content, self._machine)
        if kept is None:
            _log.warning("peaks %s are not this machine's, or damaged; measuring them again", self._path.name)
        return kept

    def _warn(self, what: str, error: OSError) -> None:
        _log.warning("peaks cannot be %s in %s (%s)", what, self._path.parent, error.strerror)


def known_peaks() -> Peaks | None:
    """This machine's peaks, if they have been measured. Raises NativeUnavailableError."""
    return _file_of(load_library()).read()


def learn_peaks(is_undisturbed: Callable[[], bool]) -> Peaks:
    """This machine's peaks; uses all cores for half a second, the first few times that anybody asks.

    Raises:
        DisturbedError: `is_undisturbed` said no before it was done, or another process measures now.
        NativeUnavailableError: there is no library to measure with.
    """
    library = load_library()
    return _file_of(library).learn(lambda: measure_peaks(library, usable_cores(), is_undisturbed), on_wait=_give_up)


def _give_up() -> None:
    # It may be stopped in the middle, and a thread that waits for it would keep this process from ending.
    raise DisturbedError


def _file_of(library: NativeLibrary) -> PeaksFile:
    return PeaksFile(Machine(cpu_model(), usable_cores(), library.name), cache_dir() / "peaks")


def _content(kept: _Kept, machine: Machine) -> bytes:
    peaks = kept.peaks
    rates = {kind.name.lower(): rate for kind, rate in peaks.operations_per_s.items()}
    return json.dumps(
        {
            "machine": asdict(machine),
            "measurings": kept.measurings,
            "threads": peaks.threads,
            "operations_per_s": rates,
            "read_bytes_per_s": peaks.read_bytes_per_s,
            "single_read_bytes_per_s": peaks.single_read_bytes_per_s,
        },
        indent=1,
    ).encode()


def _kept(content: Any, machine: Machine) -> _Kept | None:
    """None: of another machine, or not what `_content` makes."""
    try:
        rates = {kind: float(content["operations_per_s"][kind.name.lower()]) for kind in Arithmetic}
        reads = float(content["read_bytes_per_s"]), float(content["single_read_bytes_per_s"])
        is_usable = content["machine"] == asdict(machine) and content["threads"] == machine.cores
        measurings = int(content["measurings"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    peaks = Peaks(machine.cores, rates, *reads)
    return _Kept(peaks, measurings) if is_usable and _is_sensible(peaks) else None


def _best(one: Peaks, other: Peaks) -> Peaks:
    return Peaks(
        one.threads,
        {kind: max(rate, other.operations_per_s[kind]) for kind, rate in one.operations_per_s.items()},
        max(one.read_bytes_per_s, other.read_bytes_per_s),
        max(one.single_read_bytes_per_s, other.single_read_bytes_per_s),
    )


def _is_sensible(peaks: Peaks) -> bool:
    rates = (*peaks.operations_per_s.values(), peaks.read_bytes_per_s, peaks.single_read_bytes_per_s)
    return all(math.isfinite(rate) and rate > 0 for rate in rates)
