"""Engines that a plan can be launched on: one module each, whose `commands` says what runs."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fourlane.planner.launch import Commands, Connector, Launch

__all__ = ["ENGINES", "Engine", "commands_of"]


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine: a line about it, what moves its KV cache unless said otherwise, and the module that knows it."""

    summary: str
    connector: Connector
    module: str


ENGINES: Mapping[str, Engine] = {
    "fourlane": Engine("this project's own engine", "nixl", "fourlane.planner.engines.fourlane"),
    "sglang": Engine("SGLang 0.5.23", "mooncake", "fourlane.planner.engines.sglang"),
    "vllm": Engine("vLLM 0.32.0", "nixl", "fourlane.planner.engines.vllm"),
}


def commands_of(launch: Launch, engine: str) -> Commands:
    """Return what an engine runs for a launch.

    Raises:
        SpecError: the engine cannot do what the plan asks for; the message says what to change.
    """
    module = importlib.import_module(ENGINES[engine].module)
    found: Commands = module.commands(launch)
    return found
