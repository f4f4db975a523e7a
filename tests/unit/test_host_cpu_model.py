"""What a processor says of itself."""

from pathlib import Path

import pytest

from forebay.host.cpu_model import is_intel


@pytest.mark.parametrize(
    ("told", "expected"),
    [("vendor_id\t: GenuineIntel\nmodel\t: 143\n\n", True), ("vendor_id\t: AuthenticAMD\n\n", False), ("", False)],
)
def test_the_maker_is_told_by_the_first_processor(tmp_path: Path, told: str, expected: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(told)
    assert is_intel(cpuinfo) is expected
    assert is_intel(tmp_path / "none") is False
