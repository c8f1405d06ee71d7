"""Record what a rank computed, waited for and communicated in its steps, stage by stage.

Switched on by whoever passes one to an executor and to a communication thread; costs a few
microseconds a stage. Not for keeping: it grows with every stage recorded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["NamedStage", "Span", "StageTrace"]


class NamedStage(Protocol):
    """A stage of a forward pass, as `policy.stages` lists them."""

    @property
    def layer(self) -> int:
        """Return the layer of the model."""
        ...

    @property
    def computes(self) -> str:
        """Return what it computes, in a word or two."""
        ...


@dataclass(frozen=True, slots=True)
class Span:
    """What happened from `begin_s` to `end_s`, in seconds of `time.perf_counter`.

    Args:
        kind: computing; waiting for what had not come yet; an operation of the exchange under way.
        stream: which micro-batch, 0 or 1; 0 with a single stream.
        layer: which of the model; the layers' count for the output head.
        name: the stage, or the operation.
    """

    kind: Literal["compute", "wait", "communicate"]
    stream: int
    layer: int
    name: str
    begin_s: float
    end_s: float


class StageTrace:
    """Spans in the order in which they ended.

    The computing thread and the communicating one add to it.

    Args:
        stages: of the forward passes to be recorded; `begin_step` may give others.
        moe_layers: which layer of the model each layer with experts is.
    """

    def __init__(self, stages: Sequence[NamedStage], moe_layers: Sequence[int]) -> None:
        self.spans: list[Span] = []
        self.stream = 0
        """The one that computes now: what is posted belongs to it."""
        self._stages = stages
        self._moe_layers = moe_layers
        self._reached = [0, 0]

    def begin_step(self, stages: Sequence[NamedStage] | None = None) -> None:
        """Begin another forward pass; if given, with these stages."""
        self._reached = [0, 0]
        if stages is not None:
            self._stages = stages

    def enter(self, stream: int) -> None:
        """Note which stream computes from now on."""
        self.stream = stream

    def computed(self, stream: int, waits_s: float, begin_s: float, end_s: float) -> None:
        """Add a stream's next stage, which waited from `waits_s` on and computed from `begin_s` to `end_s`."""
        stage = self._stages[self._reached[stream]]
        self._reached[stream] += 1
        if self._reached[stream] > 1:
            self.spans.append(Span("wait", stream, stage.layer, stage.computes, waits_s, begin_s))
        self.spans.append(Span("compute", stream, stage.layer, stage.computes, begin_s, end_s))

    def communicated(self, stream: int, moe_layer: int, name: str, begin_s: float, end_s: float) -> None:
        """Add an operation of the exchange.

        Args:
            stream: whose it was.
            moe_layer: counted among the layers with experts.
            name: dispatch or combine.
            begin_s, end_s: when it was worked on.
        """
        self.spans.append(Span("communicate", stream, self._moe_layers[moe_layer], name, begin_s, end_s))
