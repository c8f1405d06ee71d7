"""Each effect of lanes alone, with plain probe flows: one module an experiment, each with a `run` function."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from fourlane.lab.experiment import Shown
    from fourlane.lab.experiments.arrangements import Settings

__all__ = ["EXPERIMENTS", "experiment"]

EXPERIMENTS = {
    "isolation": "Expert ping-pong beside KV bulk: one FIFO, a queue of its own, a network of its own.",
    "incast": "Several hosts answer at once: a starved expert buffer against the plan's.",
    "collision": "Two elephants over two spines: hashed by flow, spread by packet.",
    "kv": "KV bandwidth beside expert traffic: shared network against one of its own.",
    "marks": "The running engine: does every lane carry its DSCP on its interface?",
}


def experiment(name: str) -> Callable[[Settings, Callable[[str, int, int], None]], Shown]:
    """Return the function that runs an experiment."""
    return importlib.import_module(f"fourlane.lab.experiments.{name}").run
