"""Twins to launch in tests, and a folder with what was rendered of one."""

from __future__ import annotations

import os
import shlex
import subprocess
from typing import TYPE_CHECKING, Any

from fourlane.lanes.render.folder import write_files
from fourlane.planner.render import Choices, Rendered, render_launch
from fourlane.spec.twin import Assumptions, Experts, Slo, Twin, TwinPool, Workload
from fourlane.units import Duration

if TYPE_CHECKING:
    from pathlib import Path


def twin(model: str = "deepseek-v3", cluster: str = "h800-10k", **fields: Any) -> Twin:
    """Return two prefill units of four servers, and one decode unit of eight."""
    made: dict[str, Any] = {
        "name": "wide",
        "model": model,
        "cluster": cluster,
        "prefill": TwinPool(units=2, ranks=32, redundant_experts=32),
        "decode": TwinPool(units=1, ranks=64, max_running=128, redundant_experts=30),
        "workload": Workload(rate=20.0, input_len="1024", output_len="128..384"),
        "slo": Slo(ttft=Duration.parse("1s"), tpot=Duration.parse("50ms")),
    }
    return Twin(**{**made, **fields})


def small_units() -> Twin:
    """Return units of which two share a server."""
    return twin(
        "qwen3-30b-a3b",
        name="small",
        prefill=TwinPool(units=3, ranks=4, overlap="never"),
        decode=TwinPool(units=2, ranks=4, overlap="always", prefix_cache=False),
        experts=Experts(placement="linear"),
        assumptions=Assumptions(kv="fp8"),
    )


def rendered(wanted: Twin, engine: str, target: str = "bash", **choices: Any) -> Rendered:
    """Render a twin."""
    return render_launch(wanted, Choices(engine=engine, target=target, **choices))


def written(made: Rendered, folder: Path) -> Path:
    """Write what was rendered into a folder."""
    write_files(made.files, folder)
    return folder


def said(folder: Path, *command: str, **variables: str) -> list[list[str]]:
    """Run a rendered script dry and return the commands it would run, comments left out."""
    environment = {"PATH": os.environ["PATH"], "DRY_RUN": "1", **variables}
    done = subprocess.run(
        ["bash", *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines() if not line.startswith("#")]


def option(words: list[str], name: str) -> str:
    """Return the value of an option that is there once."""
    assert words.count(name) == 1, (name, words)
    return words[words.index(name) + 1]
