"""Hold rendered commands against the parser of an engine that is installed, in a Python of its own.

The scripts themselves are run dry, as a server would run them, and what they would call is handed to the parser. Option
names must be exact, though the parser would take a prefix. Not for starting an engine.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import tempfile
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from fourlane.errors import CheckFailed, EnvironmentMissing, SpecError
from fourlane.lanes.render.folder import write_files
from fourlane.planner.engines.flags import flag_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fourlane.planner.render import Rendered

__all__ = ["check_installed", "dry_run"]

DRY_RUN_S = 30
PARSER_S = 300
"""An engine takes a minute and more to import on a slow disk."""
_PLACE = {
    "MODEL": "/models/any",
    "HEAD": "10.0.0.1",
    "HOST": "10.0.0.2",
    "UNIT": "1",
    "NODE": "1",
    "SLOT": "0",
    "GATEWAY": "10.0.0.1",
    "PREFILL": "10.0.0.1:0",
    "DECODE": "10.0.0.2:0",
    "URL": "http://10.0.0.1:9000",
    "EXPERT_ADDRESS": "10.0.0.2",
    "KV_ADDRESS": "10.0.1.2",
}
"""A server somewhere."""


def dry_run(folder: Path, script: str) -> list[str]:
    """Return the words that a rendered script would run on some server.

    Raises:
        CheckFailed: the script itself fails.
    """
    done = subprocess.run(
        ["bash", str(folder / script)],  # noqa: S607 - whichever bash there is
        env={**_PLACE, "DRY_RUN": "1", "PATH": "/usr/local/bin:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=DRY_RUN_S,
        check=False,
    )
    if done.returncode:
        raise CheckFailed(f"{script}: expected a script that runs dry, got: {done.stderr.strip()}")
    return shlex.split(done.stdout)


def check_installed(made: Rendered, engine: str, python: str) -> list[str]:
    """See that an installed engine's parser takes what every phase runs.

    Args:
        made: what was rendered.
        engine: "vllm" or "sglang".
        python: of the environment that has it.

    Returns:
        What was checked, in sentences.

    Raises:
        SpecError: the engine is fourlane, whose options this package has itself.
        EnvironmentMissing: no such Python, or it has no such engine.
        CheckFailed: the parser refuses a command.
    """
    if engine == "fourlane":
        raise SpecError(
            "--check-installed: expected --engine vllm or sglang; fourlane's options are this package's own"
        )
    with tempfile.TemporaryDirectory(prefix="fourlane-launch-") as name:
        folder = Path(name)
        shared = {path: text for path, text in made.scripts.items() if path.endswith(".sh")}
        write_files(shared, folder)
        found = {phase: _arguments(dry_run(folder, f"{phase}.sh"), made, phase) for phase in made.commands.phases}
    answer = _asked(engine, python, list(found.values()))
    faults = [f"{phase}: {fault}" for phase, each in zip(found, answer["faults"], strict=True) for fault in each]
    if faults:
        raise CheckFailed(f"{engine} {answer['version']} of {python} refuses:\n" + "\n".join(faults))
    named, version = flag_table(engine).version, answer["version"]
    lines = [f"{engine} {version} of {python} takes the options of all {len(found)} phases"]
    if version != named:
        lines.append(f"warning: options were written for {engine} {named}; {version} may mean other things by them")
    return lines


def _arguments(words: Sequence[str], made: Rendered, phase: str) -> list[str]:
    """Return what follows the program."""
    program = made.commands.phases[phase].program  # type: ignore[index]
    positional = [word for word in words[: len(program)] if word == _PLACE["MODEL"]]
    return [*positional, *words[len(program) :]]


def _asked(engine: str, python: str, commands: list[list[str]]) -> dict[str, list[list[str]]]:
    probe = resources.files("fourlane.planner").joinpath("files", f"check_{engine}.py").read_text(encoding="utf-8")
    try:
        done = subprocess.run(
            [python, "-c", probe],
            input=json.dumps(commands),
            capture_output=True,
            text=True,
            timeout=PARSER_S,
            check=False,
        )
    except OSError as error:
        raise EnvironmentMissing(f"--check-installed: {python}: expected a Python, got: {error.strerror}") from error
    except subprocess.TimeoutExpired:
        raise EnvironmentMissing(f"--check-installed: {engine} was not imported after {PARSER_S} s") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise EnvironmentMissing(
            f"--check-installed: {python} cannot say which options {engine} has: {last}; name the Python of an "
            f"environment with {engine} {flag_table(engine).version}"
        )
    found: dict[str, list[list[str]]] = json.loads(done.stdout.splitlines()[-1])
    return found
