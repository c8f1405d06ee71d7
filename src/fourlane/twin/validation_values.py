"""A published figure, or one simulated by packets, what the twin makes of it, and the bounds it is held to.

Not for working any out (`fourlane.twin.validation`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["GROUPS", "Check", "Group"]

Group = Literal["serving", "kernels", "exchange", "network", "flow level"]
GROUPS: tuple[Group, ...] = ("serving", "kernels", "exchange", "network", "flow level")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A published figure beside the twin's.

    Args:
        group: what is held against it: the twin's steps, its kernels, packets, or flow level.
        name: of the row.
        unit: of the figure; "gain": a share by which throughput grows.
        published: in words.
        figure: the twin's.
        error: a share of what was published, or of gains the difference; None where only bounds were published.
        bar: what it is held to, in words.
        within: whether it is.
        held: whether a row that is not counts as failed.
        fitted: which figures were fitted on this row.
        assumed: what the row's source does not say.
        source: of the row.
        sources: of what the figure is made of.
    """

    group: Group
    name: str
    unit: str
    published: str
    figure: float
    error: float | None
    bar: str
    within: bool
    held: bool = True
    fitted: tuple[str, ...] = ()
    assumed: str = "nothing"
    source: str
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Tell whether a row that was to be held was missed."""
        return self.held and not self.within

    @property
    def kind(self) -> str:
        """Return whether the row is a prediction, in words."""
        return f"fitted: {', '.join(self.fitted)}" if self.fitted else "predicted"

    @property
    def verdict(self) -> str:
        """Return what came of it."""
        if self.within:
            return "pass" if self.held else "within"
        return "miss" if self.held else "beyond"
