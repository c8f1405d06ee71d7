"""Expert dispatch and combine as flows between ranks, with the bytes that cross each wire: one message a choice.

What a rank sends itself is on no wire. Here ranks are numbers; `fourlane.twin.fabric.expert_workloads` puts them on a
topology. Not for which rank a token goes to (`fourlane.twin.fabric.expert_routing`), nor for tokens that cross once
per node (`fourlane.twin.fabric.expert_forwarding`).

Source: DeepEP README (low-latency kernels, formats of messages).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from fourlane.errors import SpecError
from fourlane.twin.fabric.expert_routing import check_counts

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ExpertTraffic", "LowLatencyKernels", "message_bytes"]

CrossRail = Literal["spine", "sender", "receiver"]
_SCALE_BLOCK = 128  # values that share one 4-byte scale in FP8
_MESSAGE_HEADER = 16


def message_bytes(hidden: int, dtype: Literal["fp8", "bf16"]) -> int:
    """Return the bytes of one token's vector on the wire: FP8 with its scales and header, or plain BF16.

    Raises:
        SpecError: FP8 needs a hidden size of whole blocks that share a scale.
    """
    if hidden < 1 or (dtype == "fp8" and hidden % _SCALE_BLOCK):
        raise SpecError(f"hidden: expected a positive multiple of {_SCALE_BLOCK}, got {hidden}")
    return hidden + hidden // _SCALE_BLOCK * 4 + _MESSAGE_HEADER if dtype == "fp8" else hidden * 2


@dataclass(frozen=True, eq=False, kw_only=True)
class ExpertTraffic:
    """The flows of one dispatch or combine.

    Attributes:
        ranks: how many there are, in all groups.
        ranks_per_node: consecutive ranks that share a node; the place of a rank in it is its rail.
        message: bytes of one message; a flow is a whole number of them.
        source, target: i32 [flows], ranks.
        size: i64 [flows], bytes.
        nvlink: bool [flows], inside a node over NVLink rather than by NIC.
        before, after: i32 [dependencies]: flow `after` starts once flow `before` has been delivered.
    """

    ranks: int
    ranks_per_node: int
    message: int
    source: NDArray[np.int32]
    target: NDArray[np.int32]
    size: NDArray[np.int64]
    nvlink: NDArray[np.bool_]
    before: NDArray[np.int32]
    after: NDArray[np.int32]

    @property
    def flows(self) -> int:
        """Return how many flows there are."""
        return len(self.source)

    def bytes_into(self, *, nvlink: bool) -> NDArray[np.int64]:
        """Return [ranks]: bytes that arrive at each rank by NIC, or over NVLink."""
        chosen = self.nvlink == nvlink
        return _summed(self.target[chosen], self.size[chosen], self.ranks)

    def bytes_out_of(self, *, nvlink: bool) -> NDArray[np.int64]:
        """Return [ranks]: bytes that leave each rank by NIC, or over NVLink."""
        chosen = self.nvlink == nvlink
        return _summed(self.source[chosen], self.size[chosen], self.ranks)

    def turned(self, *, also_before: NDArray[np.int64], also_after: NDArray[np.int64]) -> ExpertTraffic:
        """Return the same bytes the other way, every dependency reversed, with dependencies more."""
        return replace(
            self,
            source=self.target,
            target=self.source,
            before=np.concatenate([self.after, also_before]).astype(np.int32),
            after=np.concatenate([self.before, also_after]).astype(np.int32),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LowLatencyKernels:
    """One message per (token, expert), straight to the expert's rank.

    Args:
        hidden: model dim.
        ranks_per_node: GPUs that share an NVSwitch.
        nvlink: use it inside the node; otherwise everything goes by NIC.
        cross_rail: how a message reaches a GPU of another node and rail: from NIC to NIC ("spine"), over NVLink to the
            GPU of the target's rail first ("sender", as NCCL's PXN does), or by NIC along the own rail and over NVLink
            at the end ("receiver").
    """

    hidden: int = 7168
    ranks_per_node: int = 8
    nvlink: bool = False
    cross_rail: CrossRail = "spine"

    def __post_init__(self) -> None:
        if self.cross_rail not in ("spine", "sender", "receiver"):
            raise SpecError(f'cross_rail: expected "spine", "sender" or "receiver", got "{self.cross_rail}"')
        if self.cross_rail != "spine" and not self.nvlink:
            raise SpecError(f'cross_rail: "{self.cross_rail}" passes messages on over NVLink; set nvlink too')

    def dispatch(self, count_GG: NDArray[np.int64]) -> ExpertTraffic:
        """Return the flows that carry tokens to experts.

        Args:
            count_GG: [ranks, ranks] or [groups, ranks, ranks]: messages from (row) to (column); the diagonal is free.
        """
        return self._sent(count_GG, message_bytes(self.hidden, "fp8"))

    def combine(self, count_GG: NDArray[np.int64]) -> ExpertTraffic:
        """Return the flows that carry results back; `count_GG` is the dispatch's."""
        check_counts(count_GG)
        return self._sent(np.swapaxes(count_GG, -1, -2), message_bytes(self.hidden, "bf16"))

    def _sent(self, count_GG: NDArray[np.int64], message: int) -> ExpertTraffic:
        check_counts(count_GG)
        cube = count_GG.reshape(-1, *count_GG.shape[-2:])
        each = cube.shape[-1]
        if each % self.ranks_per_node and each > self.ranks_per_node:
            raise SpecError(f"counts: expected a multiple of {self.ranks_per_node} ranks a group, got {each}")
        rank = np.arange(each, dtype=np.int32)
        turned = cube[:, rank[:, None], (rank[:, None] + rank[None, 1:]) % each]  # each begins with its next rank
        group, row, ahead = (index.astype(np.int32) for index in np.nonzero(turned))
        source = group * each + row
        target = group * each + (row + ahead + 1) % each
        size = turned[group, row, ahead].astype(np.int64) * message
        inside = self._node(source) == self._node(target)
        nowhere = np.empty(0, dtype=np.int32)
        straight = ExpertTraffic(
            ranks=cube.shape[0] * each,
            ranks_per_node=self.ranks_per_node,
            message=message,
            source=source,
            target=target,
            size=size,
            nvlink=inside & self.nvlink,
            before=nowhere,
            after=nowhere,
        )
        return straight if self.cross_rail == "spine" else self._relayed(straight)

    def _relayed(self, straight: ExpertTraffic) -> ExpertTraffic:
        """Return the traffic with flows that change rail cut in two: a hop over NVLink, a hop by NIC."""
        at_sender = self.cross_rail == "sender"
        source, target = straight.source, straight.target
        relay_node, rail_of = (source, target) if at_sender else (target, source)
        relay = relay_node - relay_node % self.ranks_per_node + rail_of % self.ranks_per_node
        cut = np.flatnonzero(~straight.nvlink & (source % self.ranks_per_node != target % self.ranks_per_node))
        first_target = target.copy()
        first_target[cut] = relay[cut]
        first_nvlink = straight.nvlink.copy()
        first_nvlink[cut] = at_sender
        return ExpertTraffic(
            ranks=straight.ranks,
            ranks_per_node=straight.ranks_per_node,
            message=straight.message,
            source=np.concatenate([source, relay[cut]]),
            target=np.concatenate([first_target, target[cut]]),
            size=np.concatenate([straight.size, straight.size[cut]]),
            nvlink=np.concatenate([first_nvlink, np.full(len(cut), not at_sender)]),
            before=cut.astype(np.int32),
            after=np.arange(len(source), len(source) + len(cut), dtype=np.int32),
        )

    def _node(self, rank: NDArray[np.int32]) -> NDArray[np.int32]:
        return rank // self.ranks_per_node


def _summed(place: NDArray[np.int32], size: NDArray[np.int64], places: int) -> NDArray[np.int64]:
    """Return sums of whole numbers by place (exact: `np.bincount` with weights would go by floats)."""
    total = np.zeros(places, dtype=np.int64)
    np.add.at(total, place, size)
    return total
