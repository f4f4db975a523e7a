"""Instruction sets that the native library can be compiled for, and which of them this machine has."""

from enum import Enum
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


class InstructionSet(Enum):
    """What a build of the library may use, widest first; the value is the library's own name for it."""

    AVX512 = "avx512"
    AVX2 = "avx2"
    SCALAR = "scalar"

    @property
    def compiler_flags(self) -> tuple[str, ...]:
        """What the compiler must be told. Never -march=native: a cache folder may serve several machines."""
        return tuple(f"-m{name.replace('_', '')}" for name in _NEEDED[self])

    def is_supported_by(self, cpu_flags: frozenset[str]) -> bool:
        """Whether a CPU with these flags (as /proc/cpuinfo names them) can run such a build."""
        return cpu_flags.issuperset(_NEEDED[self])


_NEEDED = {
    InstructionSet.AVX512: (
        *("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16"),
        *("avx2", "fma", "f16c"),
    ),
    InstructionSet.AVX2: ("avx2", "fma", "f16c"),
    InstructionSet.SCALAR: (),
}


def cpu_flags(cpuinfo: Path = _CPUINFO) -> frozenset[str]:
    """Flags of the first CPU; none where the kernel does not tell them (then only SCALAR can be used)."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return frozenset(line.partition(":")[2].split())


def supported_sets() -> list[InstructionSet]:
    """Those that this machine can run, widest first; never empty."""
    flags = cpu_flags()
    return [candidate for candidate in InstructionSet if candidate.is_supported_by(flags)]
