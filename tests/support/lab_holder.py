"""A program that holds a lab and says what processes there are: to be killed, or to run as another user.

Run as `python lab_holder.py`; prints one line of JSON, then waits for its standard input to end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from fourlane.lab.network import Lab
from fourlane.lab.topology import star

__all__ = ["main"]


def main() -> None:
    """Hold a lab of two hosts, with a program and one that has left its session in the first."""
    with Lab(star(2)) as lab:
        inside = lab.start("h0", ["sh", "-c", "setsid sleep 300 & echo $!; exec sleep 300"], stdout=subprocess.PIPE)
        assert inside.stdout is not None
        escaped = int(inside.stdout.readline())
        nic = lab.topology.nic("h0", "hpn")
        queues = lab.read_back(nic)
        told = {
            "uid": os.geteuid(),
            "user": lab.spaces.user,
            "pids": [lab.spaces.keeper_pid, *lab.spaces.holders.values(), inside.pid, escaped],
            "namespace": str(Path(f"/proc/{lab.spaces.holders['h0']}/ns/net").readlink()),
            "rate": str(queues.rate),
        }
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
