"""Services cut off the network under load: no request is lost, and nothing is held afterwards.

In a process of its own, which takes a network of its own for good.
"""

import json
import subprocess
import sys

import pytest

from forebay.testing.cut_mesh import can_cut

ROLES = ("decode", "kvcache", "router", "nats")


@pytest.mark.skipif(not can_cut(), reason="needs Linux, root, `ip` and `unshare`, to make networks")
def test_a_service_that_is_cut_off_costs_no_request() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "forebay.testing.cut_rounds", *ROLES],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert told.returncode == 0, told.stderr[-2000:]
    rounds = json.loads(told.stdout)
    assert [one["role"] for one in rounds] == list(ROLES)
    for one in rounds:
        assert (one["failed"], one["wrong"], one["hung"], one["held_blocks"]) == (0, 0, 0, 0), one
        assert one["good"] > 0
        if one["role"] != "kvcache":  # alone on its node: nobody is answered without it
            assert one["first_good_s"] is not None
