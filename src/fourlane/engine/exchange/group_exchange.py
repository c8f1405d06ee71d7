"""What every exchange of a group shares: its ranks step together and agree, and count what they do.

Who this rank is, where experts live, what ranks announce with a step's first counts and what follows
from it. Not for how bytes travel, nor for the layout of rows: that is an implementation's.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from fourlane.engine.exchange.contract import OUTLOOK, Agreement, GroupExchange
from fourlane.engine.exchange.counters import ExchangeCounters
from fourlane.engine.exchange.meeting import nodes_of
from fourlane.engine.exchange.payload import AS_IS
from fourlane.engine.exchange.slots import SlotTables
from fourlane.errors import PeerLost

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fourlane.engine.exchange.meeting import GroupAddress
    from fourlane.engine.exchange.payload import Payload
    from fourlane.engine.exchange.slots import Routes
    from fourlane.lanes.marking import Mark
    from fourlane.policy.exchange_path import Hierarchical
    from fourlane.policy.placement import Placement

__all__ = ["ANNOUNCED", "Meanwhile", "SteppedExchange", "outlook_row"]

ANNOUNCED = 4 + OUTLOOK
"""Columns behind the counts: step, more, staged, refused, and the outlook."""
_TEXT_BYTES = 256


def outlook_row(outlook: Sequence[int]) -> np.ndarray:
    """Return an outlook's numbers, int64 [OUTLOOK], those not told zero."""
    assert len(outlook) <= OUTLOOK, f"an outlook has at most {OUTLOOK} numbers, got {len(outlook)}"
    row = np.zeros(OUTLOOK, dtype=np.int64)
    row[: len(outlook)] = outlook
    return row


class Meanwhile(Protocol):
    """What may begin while an operation that has posted all it sends is still waited for."""

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when there is something to begin."""
        ...

    def begin_next(self) -> None:
        """Begin what there is, if anything; the descriptor is no longer readable. Never blocks, never raises."""
        ...


class SteppedExchange(GroupExchange):
    """One rank's place in a group that runs the same steps; implementations move rows.

    Args:
        address: who this rank is among how many.
        placement: where experts live at first.
        marks: of the connections the exchange has opened.
        counters: totals of an earlier generation to go on with.
        split: level the ranks over the replicas batch by batch; False: spread each expert's tokens evenly.
        payload: in which form rows are dispatched, the same on all ranks; outputs come back as they are.
    """

    spins = False
    """It waits with the processor in hand, at least at first: never to be run at real-time priority."""

    def __init__(
        self,
        address: GroupAddress,
        placement: Placement,
        *,
        marks: list[Mark],
        counters: ExchangeCounters | None = None,
        split: bool = True,
        payload: Payload = AS_IS,
    ) -> None:
        self.rank = address.rank
        self.ranks = address.ranks
        self.marks = marks
        self.counters = counters or ExchangeCounters(layers=placement.layers, experts=placement.experts)
        self._address = address
        self._tables = SlotTables(placement, rank=address.rank)
        self._split = split
        self._payload = payload
        self._nodes = 1
        self._own_node = slice(0, self.ranks)
        """The ranks of this one's node."""
        self._announced = torch.zeros(ANNOUNCED, dtype=torch.int64)
        self._agreement: Agreement | None = None
        self._place = "joining"
        self.meanwhile: Meanwhile | None = None
        """Begun while rows are waited for, where an implementation can be woken from that. All ranks' operations still
        begin in the same order."""

    @abstractmethod
    def close(self) -> None:
        """Leave the group; operations under way on other ranks fail there."""

    def interrupt(self) -> None:
        """Let an operation that another thread waits for fail soon; where this does nothing, its timeout ends it."""

    @abstractmethod
    def _gather(self, mine: Tensor, where: str) -> np.ndarray:
        """Give a vector, as long as every rank's, to all ranks; return everybody's, [ranks, length].

        Raises:
            PeerLost: a peer died or hangs, or gave a vector of another length.
        """

    def find_nodes(self, host: str, *, hierarchical: Hierarchical = "never") -> int:
        """Tell the others on which host this rank is; return on how many nodes the group is, if in rank order.

        From then on splits keep tokens on their node where that makes no rank fuller.

        Args:
            host: this rank's.
            hierarchical: whether tokens go once per node, the same on all ranks; for exchanges that can.

        Raises:
            PeerLost: a peer died or hangs.
        """
        del hierarchical
        self._nodes = nodes_of(self.tell_all(host))
        width = self.ranks // self._nodes
        self._own_node = slice(self.rank // width * width, (self.rank // width + 1) * width)
        return self._nodes

    def begin_step(
        self, step: int, *, more: bool, staged: int = 0, refused: int = 0, outlook: Sequence[int] = ()
    ) -> None:
        """Attach this rank's announcement to the first counts of the coming forward pass. See the contract."""
        self._announced = torch.from_numpy(np.r_[[step, int(more), staged, refused], outlook_row(outlook)])
        self._agreement = None
        self._place = f"step {step}"

    def agreement(self) -> Agreement:
        """Return what the group agreed on in the step that has just run."""
        assert self._agreement is not None, "no exchange ran in this step"
        return self._agreement

    def tell_all(self, text: str) -> list[str]:
        """Give a short text to all ranks and return everybody's, by rank.

        Raises:
            PeerLost: a peer died or hangs.
        """
        mine = torch.zeros(_TEXT_BYTES, dtype=torch.uint8)
        encoded = text.encode()
        mine[: len(encoded)] = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
        return [row.tobytes().rstrip(b"\0").decode() for row in self._gather(mine, "telling endpoints")]

    def tell_all_numbers(self, numbers: np.ndarray) -> np.ndarray:
        """Give int64 numbers, as many as every rank, to all ranks; return everybody's, [ranks, numbers].

        Raises:
            PeerLost: a peer died or hangs, or told another number of them.
        """
        return self._gather(torch.from_numpy(numbers), "telling numbers")

    def _count_row(self, count_E: Tensor, more_X: Tensor | None = None) -> Tensor:
        """Return what this rank tells in a counts round: counts, what an implementation adds, the announcement."""
        columns = (count_E,) if more_X is None else (count_E, more_X)
        return torch.cat((*columns, self._announced.to(count_E.device)))

    def _read_counts(self, row_GX: np.ndarray) -> np.ndarray:
        """Return the counts, and what was added to them, of all ranks, having agreed on what they announced."""
        self._agree(row_GX[:, -ANNOUNCED:])
        return np.ascontiguousarray(row_GX[:, :-ANNOUNCED])

    def _agree(self, announced_GX: np.ndarray) -> None:
        """Keep what follows from everybody's announcement, if these are the step's first counts.

        Raises:
            PeerLost: the ranks are in different steps.
        """
        if self._agreement is not None:
            return
        step_G, more_G, staged_G, refused_G = announced_GX[:, :-OUTLOOK].T
        if (step_G != step_G[self.rank]).any():
            raise PeerLost(f"{self._place}: ranks of the group are in different steps: {step_G.tolist()}")
        self._agreement = Agreement(
            step=int(step_G[self.rank]),
            more=bool(more_G.any()),
            staged=int(staged_G.min()),
            refused=int(refused_G.max()),
            outlook_GO=announced_GX[:, -OUTLOOK:].copy(),
        )

    def _count(self, layer: int, routes: Routes, own_E: np.ndarray, decode_E: Tensor | None) -> None:
        """Count one layer of one step: what all routed, and this rank's own tokens by phase."""
        fullest, if_equal = int(routes.tokens_G.max()), routes.fullest_if_equal
        self.counters.observe(layer, routes.count_E, fullest=fullest, fullest_if_equal=if_equal, ranks=self.ranks)
        self.counters.observe_own(layer, own_E, None if decode_E is None else decode_E.cpu().numpy())

    def _lost(self, where: str, found: object) -> PeerLost:
        """Return the error of an operation that did not go through, with what was found."""
        return PeerLost(
            f"{where}: rank {self.rank} of {self.ranks} could not exchange within "
            f"{self._address.step_s:g} s: a peer died or hangs ({found})"
        )
