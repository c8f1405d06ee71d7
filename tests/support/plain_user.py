"""Run a Python program as a user without privileges, from tests that root runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache

__all__ = ["python_as_plain_user"]

NOBODY = "65534"
_TRIAL = "import fourlane.lab.network, subprocess, sys; subprocess.run([sys.executable, '-c', ''], check=True)"


@cache
def python_as_plain_user() -> tuple[list[str], dict[str, str]] | str:
    """Return the words and the environment that start Python as nobody; or why that is not possible.

    The interpreter of the tests is often in a folder of root's that nobody else may enter; a system-wide one of the
    same version will do.
    """
    if os.geteuid() != 0:
        return "this user has no privileges to give up"
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return "setpriv (util-linux) is not installed"
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = {"PATH": os.environ["PATH"], "HOME": "/", "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    version = f"python3.{sys.version_info.minor}"
    for interpreter in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        words = [setpriv, "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", interpreter]
        tried = subprocess.run([*words, "-c", _TRIAL], env=environment, capture_output=True, timeout=30, check=False)
        if tried.returncode == 0:
            return words, environment
    return f"no {version} that nobody may run together with these sources"
