"""How the user would call this program again, for hints."""

import os
import shutil
import sys
from pathlib import Path


def program_name() -> str:
    """ "forebay" if the shell finds this very program by that name, else a path that works from here."""
    called = Path(sys.argv[0])
    if called.name != "forebay":
        return "python -m forebay.cli"
    found = shutil.which("forebay")
    if found is not None and os.path.realpath(found) == os.path.realpath(called):
        return "forebay"
    try:
        return str(called.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(called)
