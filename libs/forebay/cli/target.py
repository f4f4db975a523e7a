"""Which router a command talks to."""

import argparse
import os
from typing import Final

from forebay.client.async_client import DEFAULT_TARGET
from forebay.mesh.record import read_record
from forebay.mesh.state_dir import current_state_dir

_VARIABLE: Final = "FOREBAY_TARGET"


def add_target_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --target."""
    parser.add_argument(
        "--target",
        metavar="HOST:PORT[,...]",
        help="router to ask, or several: where one is lost the next goes on"
        f" (default: ${_VARIABLE}, else the local mesh, else {DEFAULT_TARGET})",
    )


def target_of(arguments: argparse.Namespace) -> str:
    """--target, else $FOREBAY_TARGET, else the mesh of the state folder, else the default address."""
    named = arguments.target or os.environ.get(_VARIABLE)
    if named:
        return str(named)
    record = read_record(current_state_dir())
    return DEFAULT_TARGET if record is None else ",".join(record.router_addresses)
