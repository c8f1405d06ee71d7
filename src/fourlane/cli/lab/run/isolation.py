"""`fourlane lab run isolation`."""

from __future__ import annotations

from fourlane.cli.lab.run.experiment import experiment_command

__all__ = ["isolation"]

isolation = experiment_command("isolation")
