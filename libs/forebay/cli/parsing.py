"""Command-line parsing that all subcommands share: how help looks, and values with units."""

import argparse
from typing import Final

_FACTORS: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def command_parser(name: str, summary: str, examples: str) -> argparse.ArgumentParser:
    """A parser for `forebay NAME` whose help ends with examples."""
    return argparse.ArgumentParser(
        prog=f"forebay {name}",
        description=summary,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def byte_count(text: str) -> int:
    """Bytes from "1500000", "512M" or "2G" (powers of 1,024); for argparse, which makes its error one of usage."""
    factor = _FACTORS.get(text[-1:].upper(), 1)
    digits = text[:-1] if factor > 1 else text
    if not (digits.isascii() and digits.isdigit()):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a size; give a whole number of bytes, or of K, M or G, such as 1500000, 512M or 2G"
        )
    return int(digits) * factor
