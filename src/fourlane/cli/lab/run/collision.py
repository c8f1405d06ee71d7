"""`fourlane lab run collision`."""

from __future__ import annotations

from fourlane.cli.lab.run.experiment import experiment_command

__all__ = ["collision"]

collision = experiment_command("collision")
