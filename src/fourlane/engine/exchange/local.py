"""Exchange within one rank: no communication, the same row order and the same sums."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from fourlane.engine.exchange.contract import Agreement, Pending, Received
from fourlane.engine.exchange.counters import ExchangeCounters
from fourlane.engine.exchange.group_exchange import outlook_row
from fourlane.engine.exchange.payload import AS_IS
from fourlane.engine.exchange.rows import decoded_counts, weighted_sum
from fourlane.engine.exchange.slots import SlotTables

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fourlane.engine.exchange.payload import Payload
    from fourlane.policy.placement import Placement

__all__ = ["Done", "LocalExchange"]


@dataclass(frozen=True, slots=True)
class Done:
    """A pending that has happened already."""

    value: object

    def wait(self) -> object:
        """Return the value."""
        return self.value


@dataclass(frozen=True, slots=True)
class _Handle:
    order_R: Tensor
    weights_TK: Tensor


class LocalExchange:
    """The exchange of a group of one rank.

    Args:
        placement: where experts live at first.
        payload: the form in which rows would be dispatched, were there ranks: what it rounds is rounded here
            too, so that results do not depend on the number of ranks.
    """

    spins = False

    def __init__(self, placement: Placement, *, payload: Payload = AS_IS) -> None:
        self.rank = 0
        self.ranks = 1
        self.counters = ExchangeCounters(layers=placement.layers, experts=placement.experts)
        self._tables = SlotTables(placement, rank=0)
        self._payload = payload
        self._agreement = Agreement(step=0, more=False)

    def begin_step(
        self, step: int, *, more: bool, staged: int = 0, refused: int = 0, outlook: Sequence[int] = ()
    ) -> None:
        """Agree with oneself."""
        self._agreement = Agreement(
            step=step, more=more, staged=staged, refused=refused, outlook_GO=outlook_row(outlook)[None, :]
        )

    def agreement(self) -> Agreement:
        """Return what was announced."""
        return self._agreement

    def interrupt(self) -> None:
        """Wait for nobody: there is nobody."""

    def close(self) -> None:
        """Release nothing: there is nothing."""

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
        """Sort tokens by slot; see the contract."""
        self._tables = tables = self._tables.of(placement)
        slots = tables.layer(layer)
        pairs = slots.sort(topk_TK)
        count_E = pairs.count_E.cpu().numpy()
        decode_E = decoded_counts(topk_TK, decode_rows, pairs.count_E)
        rows = topk_TK.numel()
        self.counters.observe(layer, count_E, fullest=rows, fullest_if_equal=rows, ranks=1)
        self.counters.observe_own(layer, count_E, None if decode_E is None else decode_E.cpu().numpy())
        x_TD = self._payload.unpack(self._payload.pack(x_TD), x_TD.shape[1], x_TD.dtype)
        received = Received(
            x_RD=x_TD.index_select(0, pairs.rows_R),
            offset_S1=list(accumulate(slots.spread(count_E).tolist(), initial=0)),
            count_GE=count_E[None, :],
            handle=_Handle(pairs.order_R, weights_TK),
        )
        return Done(received)  # type: ignore[return-value]

    def combine(self, y_RD: Tensor, received: Received) -> Pending[Tensor]:
        """Put rows back in token order and sum; see the contract."""
        handle = received.handle
        assert isinstance(handle, _Handle)
        return Done(weighted_sum(y_RD, handle.order_R, handle.weights_TK))  # type: ignore[return-value]
