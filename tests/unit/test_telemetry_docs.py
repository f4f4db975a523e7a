"""docs/telemetry.md lists the names that forebay.telemetry.spans defines: all of them, and no others."""

import re
from pathlib import Path

from forebay.telemetry import metrics, spans

_PAGE = Path(__file__).parents[2] / "docs" / "telemetry.md"


def listed(heading: str) -> list[str]:
    """First column of the table under a heading."""
    section = _PAGE.read_text().split(f"### {heading}\n")[1].split("\n#")[0]
    return re.findall(r"^\| `([^`]+)` \|", section, flags=re.MULTILINE)


def test_names_are_documented_once_each() -> None:
    defined = [value for name, value in vars(spans).items() if name.isupper()]
    documented = listed("Spans") + listed("Attributes")
    assert sorted(documented) == sorted(defined)
    assert len(set(documented)) == len(documented) > 30


def test_metrics_are_documented_once_each() -> None:
    defined = [value for name, value in vars(metrics).items() if name.isupper()]
    assert sorted(listed("Metrics")) == sorted(set(defined) - {metrics.PHASE})
    assert f"`{metrics.PHASE}`" in _PAGE.read_text()


def test_spans_and_attributes_are_told_apart() -> None:
    assert all("_" not in name for name in listed("Spans"))
    assert all(re.match(r"(gen_ai|forebay|rpc|error)\.", name) for name in listed("Attributes"))


def test_attribute_names_carry_the_unit_of_their_row() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", _PAGE.read_text(), flags=re.MULTILINE)
    units = {name: unit for name, unit in rows if name.startswith("forebay.")}
    for ending, unit in (("_s", "seconds"), ("_bytes", "bytes"), ("_tokens", "tokens")):
        assert {name for name in units if name.endswith(ending)} == {
            name for name, told in units.items() if told.strip().endswith(f", {unit}")
        }
