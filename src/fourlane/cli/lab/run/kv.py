"""`fourlane lab run kv`."""

from __future__ import annotations

from fourlane.cli.lab.run.experiment import experiment_command

__all__ = ["kv"]

kv = experiment_command("kv")
