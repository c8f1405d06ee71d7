"""Where a rank's experts live at first, and on which placement the ranks of a group agree when they meet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fourlane._native import crc32c
from fourlane.errors import BalanceInputError, EngineError, SpecError
from fourlane.policy.placement import Placement, linear_placement

if TYPE_CHECKING:
    from fourlane.engine.exchange.group_exchange import SteppedExchange
    from fourlane.engine.rank_config import RankBalance

__all__ = ["first_placement", "newest_placement"]


def first_placement(balance: RankBalance | None, *, layers: int, experts: int, ranks: int) -> Placement:
    """Return the placement that a group begins with.

    Args:
        balance: what the deployment says; None: one of each expert, in order.
        layers: layers with experts.
        experts: logical experts a layer.
        ranks: of the group.

    Raises:
        SpecError: the ranks cannot hold so many redundant experts, or the file is none of this model.
    """
    if balance is None or ranks == 1:
        return linear_placement(layers=layers, experts=experts, ranks=ranks)
    if balance.initial is not None:
        found = _of_file(balance.initial, layers=layers, experts=experts)
        if found.ranks == ranks:
            return found
    most = (ranks - 1) * experts
    if balance.redundant_experts > most:
        raise SpecError(
            f"balance.redundant_experts: expected at most {most}, as {ranks} ranks can hold each of {experts} experts "
            f"once, got {balance.redundant_experts}"
        )
    slots = ranks * -(-(experts + balance.redundant_experts) // ranks)
    redundant = slots - experts if balance.redundant_experts else 0
    return linear_placement(layers=layers, experts=experts, ranks=ranks, redundant=redundant)


def newest_placement(exchange: SteppedExchange, placement: Placement, version: int) -> tuple[Placement, int]:
    """Return the placement of the rank that has committed most, the lowest of those, and its version.

    Raises:
        PeerLost: a peer died or hangs.
        EngineError: the ranks hold unlike numbers of layers or slots.
    """
    table = np.ascontiguousarray(placement.slot_of_LP, dtype=np.int64)
    heads = exchange.tell_all_numbers(np.array([version, *table.shape, crc32c(table.tobytes(), 0)]))
    shapes = [tuple(head[1:3].tolist()) for head in heads]
    if len(set(shapes)) > 1:
        raise EngineError(
            f"balance: expected the same layers and slots on all ranks of the group, got {shapes}; give all the same "
            "[balance] and model"
        )
    owner = int(heads[:, 0].argmax())
    if (heads[:, 3] == heads[owner, 3]).all():
        return placement, int(heads[owner, 0])
    tables = exchange.tell_all_numbers(table.reshape(-1))
    newest = tables[owner].reshape(table.shape).astype(np.int32)
    return Placement(newest, experts=placement.experts, ranks=placement.ranks), int(heads[owner, 0])


def _of_file(path: str, *, layers: int, experts: int) -> Placement:
    from fourlane.spec.expert_files import read_placement

    found = read_placement(path)
    if (found.slot_of_LP.shape[0], found.experts) != (layers, experts):
        raise SpecError(
            f"{path}: expected {layers} layers of {experts} experts, as the model has, "
            f"got {found.slot_of_LP.shape[0]} of {found.experts}"
        )
    try:
        return Placement(found.slot_of_LP, experts=found.experts, ranks=found.ranks)
    except BalanceInputError as error:
        raise SpecError(f"{path}: {error}") from error
