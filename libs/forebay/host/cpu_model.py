"""What this machine's processor is called."""

import platform
from pathlib import Path
from typing import Final

_CPUINFO: Final = Path("/proc/cpuinfo")
_FIELDS: Final = ("model name", "cpu family", "model", "stepping")


def cpu_model(cpuinfo: Path = _CPUINFO) -> str:
    """Maker's name, family, model and stepping of the first processor; else its architecture, as where none are told.

    The name alone is not enough: virtual machines often give but a family's.
    """
    try:
        lines = cpuinfo.read_text().split("\n\n", maxsplit=1)[0].splitlines()
    except OSError:
        return platform.machine()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    told = [fields[name] for name in _FIELDS if fields.get(name)]
    return " ".join(told) or platform.machine()


def is_intel(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether its maker is Intel; no, where that is not told."""
    try:
        return "GenuineIntel" in cpuinfo.read_text().split("\n\n", maxsplit=1)[0]
    except OSError:
        return False
