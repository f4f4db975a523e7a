"""The fleet file: what an operator says of chip classes and links, in YAML.

    chip_classes:
      cpu-compute:
        watts: 45                # while busy
        usd_per_hour: 0.08
        step_overhead_s: 0.0003
        flops_per_s: 4.0e+11     # until the worker has measured what it reaches
        bytes_per_s: 2.5e+10     # likewise
    link:                        # between any two nodes
      bytes_per_s: 1.25e+9
      latency_s: 0.0005

Every key may be left out. Whatever is not understood is refused: a price that is silently ignored would route by
another.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import yaml

from forebay.chips.chip_class import BUILT_IN, ChipClass
from forebay.errors import StartError
from forebay.routing.cost import DEFAULT_LINK, LinkRates

_MAY_BE_ZERO: Final = frozenset({"watts", "usd_per_hour", "step_overhead_s", "latency_s"})
_MOST: Final = {
    "watts": 1e6,
    "usd_per_hour": 1e5,
    "step_overhead_s": 10.0,
    "flops_per_s": 1e19,
    "bytes_per_s": 1e16,
    "latency_s": 10.0,
}
"""Beyond what a rack of accelerators has: a figure above is a slip of the exponent or of the unit."""


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """What is said of a chip class; None: nothing."""

    watts: float | None = None
    usd_per_hour: float | None = None
    step_overhead_s: float | None = None
    flops_per_s: float | None = None
    bytes_per_s: float | None = None

    def filled(self, chip_class: ChipClass) -> "ClassFigures":
        """With the class's own figures where nothing is said. Rates that must be measured stay None."""
        return ClassFigures(
            watts=chip_class.watts if self.watts is None else self.watts,
            usd_per_hour=chip_class.usd_per_hour if self.usd_per_hour is None else self.usd_per_hour,
            step_overhead_s=chip_class.step_overhead_s if self.step_overhead_s is None else self.step_overhead_s,
            flops_per_s=self.flops_per_s,
            bytes_per_s=self.bytes_per_s,
        )


@dataclass(frozen=True, slots=True)
class FleetFile:
    """What a fleet file says; without one all is as by default. path: where it stands; None: there is none."""

    chip_classes: Mapping[str, ClassFigures] = field(default_factory=lambda: MappingProxyType({}))
    link: LinkRates = DEFAULT_LINK
    path: Path | None = None

    def check_served(self, served: Iterable[str]) -> None:
        """Raises StartError, naming file and key, for a chip class that is none of these."""
        for name in self.chip_classes:
            if name not in (known := sorted(set(served))):
                raise StartError(
                    f"{self.path}: chip_classes: no worker of this mesh is of class {name!r}; they are"
                    f" {' and '.join(known)}",
                    field="fleet_file",
                )

    def figures_of(self, chip_class: ChipClass) -> ClassFigures:
        """Of a class, with its own where nothing is said."""
        return self.chip_classes.get(chip_class.name, ClassFigures()).filled(chip_class)


def read_fleet_file(path: Path | None) -> FleetFile:
    """The file's content; of None what holds by default.

    Raises:
        StartError: it cannot be read or is no YAML, or it has an unknown key, an unknown chip class, or a figure that
            nothing can have; the message names file, key and reason.
    """
    if path is None:
        return FleetFile()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StartError(f"{path}: cannot be read: {error.strerror}", field="fleet_file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StartError(f"{path}: is no YAML: {' '.join(str(error).split())}", field="fleet_file") from error
    return _Reader(path).read({} if content is None else content)


@dataclass(frozen=True, slots=True)
class _Reader:
    path: Path

    def read(self, content: Any) -> FleetFile:
        known = self._mapping("the file", content, ("chip_classes", "link"))
        classes = self._mapping("chip_classes", known.get("chip_classes", {}), BUILT_IN, "unknown chip class")
        figures = {name: ClassFigures(**self._figures(f"chip_classes.{name}", said)) for name, said in classes.items()}
        link = self._numbers("link", known.get("link", {}), ("bytes_per_s", "latency_s"))
        return FleetFile(
            MappingProxyType(figures),
            LinkRates(
                bytes_per_s=link.get("bytes_per_s", DEFAULT_LINK.bytes_per_s),
                latency_s=link.get("latency_s", DEFAULT_LINK.latency_s),
            ),
            self.path,
        )

    def _figures(self, place: str, said: Any) -> dict[str, float]:
        return self._numbers(place, said, tuple(one.name for one in fields(ClassFigures)))

    def _numbers(self, place: str, said: Any, names: tuple[str, ...]) -> dict[str, float]:
        return {
            name: self._number(f"{place}.{name}", value, name)
            for name, value in self._mapping(place, said, names).items()
        }

    def _number(self, place: str, value: Any, name: str) -> float:
        try:  # YAML 1.1 takes 4e11 for a text, since it has no point
            number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else None
        except (ValueError, OverflowError):
            number = None
        if number is None:
            raise self._refused(place, f"must be a number, not {value!r}")
        may_be_zero, most = name in _MAY_BE_ZERO, _MOST[name]
        if not 0 <= number <= most or (number == 0 and not may_be_zero):
            least = "at least 0" if may_be_zero else "more than 0"
            raise self._refused(place, f"must be {least} and at most {most:g}, not {value!r}")
        return number

    def _mapping(
        self, place: str, said: Any, names: Mapping[str, object] | tuple[str, ...], problem: str = "unknown key"
    ) -> Mapping[str, Any]:
        if said is None:
            return {}
        if not isinstance(said, dict):
            raise self._refused(place, f"must have keys and values, not {said!r}")
        for name in said:
            if name not in names:
                raise self._refused(place, f"{problem} {name!r}; there are {', '.join(sorted(names))}")
        return said

    def _refused(self, place: str, reason: str) -> StartError:
        return StartError(f"{self.path}: {place}: {reason}", field="fleet_file")
