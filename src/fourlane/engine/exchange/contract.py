"""The contract of expert exchange: dispatch tokens to experts' ranks, combine what they return.

Implementations: `shared_memory` (processes of one host), `tcp` (own sockets), `torch_all_to_all` (gloo,
NCCL), on GPUs `deepep` and `symmetric_memory`, and, for a group of one rank, `local`.
Model code yields each `Pending` and never blocks; only `Pending.wait` does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fourlane.policy.placement import Placement

__all__ = [
    "MIDWAY",
    "OUTLOOK",
    "TURN",
    "Agreement",
    "BatchExchange",
    "Exchange",
    "GroupExchange",
    "Pending",
    "Received",
]

OUTLOOK = 8
"""How many numbers a rank may tell of what it expects; what they mean is `policy.overlap`'s."""

T_co = TypeVar("T_co", covariant=True)


class Pending(Protocol[T_co]):
    """Something under way. `wait` is the only place that blocks."""

    def wait(self) -> T_co:
        """Return the result, blocking until it is there.

        Raises:
            PeerLost: a peer died, or did not come within the exchange's timeout.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Turn:
    """See `TURN`."""

    def wait(self) -> None:
        """Return at once."""


TURN: Pending[None] = _Turn()
"""What a pass yields where it waits for nothing: here another stream may go on."""

MIDWAY: Pending[None] = _Turn()
"""The same amid a layer's experts, where a batch asks for that (`StepBatch.cut_experts`)."""


@dataclass(frozen=True, slots=True)
class Received:
    """What a rank got to compute in one layer.

    `x_RD` holds the rows of local slot 0, then slot 1, ... ; within a slot the rows of rank 0,
    then rank 1, ..., each in token order. Slot s owns rows `offset_S1[s]` to `offset_S1[s+1]`.
    `count_GE` [ranks, experts]: tokens each rank routed to each logical expert in this layer.

    `x_RD` is valid until its combine has been waited for; of a dispatch that is never combined, until
    two later ones have begun.
    """

    x_RD: Tensor
    offset_S1: list[int]
    count_GE: np.ndarray
    handle: object


@dataclass(frozen=True, slots=True)
class Agreement:
    """What the ranks of a group told each other with the step's first counts.

    `more`: some rank has work for the next step, so all go on without waiting to be woken.
    `staged`: the least number any rank announced, `refused`: the greatest. With migrations numbered
    from 1, a layer is committed at the step in which all had it staged, and dropped at the one in
    which somebody refused it - by all ranks at once.
    outlook_GO: int64 [ranks, OUTLOOK], what each rank expects.
    """

    step: int
    more: bool
    staged: int = 0
    refused: int = 0
    outlook_GO: np.ndarray = field(default_factory=lambda: np.zeros((1, OUTLOOK), dtype=np.int64), compare=False)


class Exchange(Protocol):
    """Dispatch and combine among the ranks of one expert-parallel group: what model code sees.

    Dispatches and combines begin in the same order on all ranks. At most two dispatches are under way
    or computed at once: those whose combine has not been waited for.
    """

    def dispatch(
        self, x_TD: Tensor, topk_TK: Tensor, weights_TK: Tensor, placement: Placement, *, layer: int
    ) -> Pending[Received]:
        """Send every token to the ranks that hold its experts.

        Args:
            x_TD: activations [tokens, model dim]; T may be 0.
            topk_TK: logical experts [tokens, K], int64.
            weights_TK: their weights [tokens, K]; applied by `combine`.
            placement: where experts live.
            layer: index into the placement's layers.
        """
        ...

    def combine(self, y_RD: Tensor, received: Received) -> Pending[Tensor]:
        """Return expert outputs to their tokens and sum them, weighted, in the order of K.

        Args:
            y_RD: outputs in the row order of `received.x_RD`.

        Returns:
            Pending of [tokens, model dim].
        """
        ...


class GroupExchange(Exchange, Protocol):
    """An exchange as whoever runs steps sees it: besides, its ranks tell each other how they stand."""

    rank: int
    ranks: int

    def begin_step(
        self, step: int, *, more: bool, staged: int = 0, refused: int = 0, outlook: Sequence[int] = ()
    ) -> None:
        """Attach this rank's announcement to the first counts of the coming forward pass.

        Args:
            step: the number of the step, the same on all ranks.
            more: this rank has work for the step after it.
            staged: the last migration this rank has all of.
            refused: the last migration this rank does not want.
            outlook: what it expects, at most `OUTLOOK` numbers; those missing are zero.
        """
        ...

    def agreement(self) -> Agreement:
        """Return what the group agreed on in the step that has just run."""
        ...

    def dispatch(
        self,
        x_TD: Tensor,
        topk_TK: Tensor,
        weights_TK: Tensor,
        placement: Placement,
        *,
        layer: int,
        decode_rows: Tensor | None = None,
    ) -> Pending[Received]:
        """Do as `Exchange.dispatch`, and count the rows named as decoded, all others as prefilled."""
        ...


@dataclass(frozen=True, slots=True)
class BatchExchange:
    """A group's exchange for one batch, whose phases it counts apart; model code need not know of them.

    decode_rows: int64, the rows of the batch that are decoded, each once; None: none.
    """

    group: GroupExchange
    decode_rows: Tensor | None

    def dispatch(
        self, x_TD: Tensor, topk_TK: Tensor, weights_TK: Tensor, placement: Placement, *, layer: int
    ) -> Pending[Received]:
        """Send every token to the ranks that hold its experts; see `Exchange`."""
        return self.group.dispatch(x_TD, topk_TK, weights_TK, placement, layer=layer, decode_rows=self.decode_rows)

    def combine(self, y_RD: Tensor, received: Received) -> Pending[Tensor]:
        """Return expert outputs to their tokens; see `Exchange`."""
        return self.group.combine(y_RD, received)
