"""Fourlane's placement in vLLM, as a policy of its expert-parallel load balancer.

`register` is an entry point of `vllm.general_plugins`: vLLM calls it in every process. It does nothing unless
FOURLANE_VLLM_EPLB=1, and then takes the place of the policy `default`, the only one vLLM's configuration
admits and the only one it runs asynchronously. FOURLANE_VLLM_PLACEMENT names a map to keep to instead of
balancing: vLLM reads no initial locations itself. Without vLLM this module can still be imported.

Source: vllm 0.32.0, vllm/distributed/eplb/policy/abstract.py and eplb_state.py (`EplbState.rearrange`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fourlane.errors import SpecError
from fourlane.integrations.eplb import map_slots, read_moves, switched_on
from fourlane.integrations.sglang_files import read_physical_to_logical
from fourlane.policy.placement import EMPTY

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["PLACEMENT", "SWITCH", "FourlanePolicy", "register"]

SWITCH = "FOURLANE_VLLM_EPLB"
PLACEMENT = "FOURLANE_VLLM_PLACEMENT"


class FourlanePolicy:
    """vLLM's interface of a balancing policy; every rank computes the same map from the same arguments."""

    @classmethod
    def rebalance_experts(
        cls,
        weight: torch.Tensor,
        num_replicas: int,
        num_groups: int,  # noqa: ARG003 - vLLM's signature
        num_nodes: int,  # noqa: ARG003 - vLLM's signature
        num_ranks: int,
        old_global_expert_indices: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return which logical expert each physical slot is to hold.

        Args:
            weight: [layers, experts], tokens each expert got on all ranks; any device and number type.
            num_replicas: physical slots of all ranks.
            num_groups: expert groups of the model; the placement is global and does not look at them.
            num_nodes: servers; nor at them.
            num_ranks: ranks that share the slots.
            old_global_expert_indices: [layers, slots], the map in force, -1 where a new rank's slot is empty.

        Returns:
            [layers, slots] int64, on the CPU.

        Raises:
            BalanceInputError: sizes that do not fit together, or loads that are not finite and >= 0.
            SpecError: the map of FOURLANE_VLLM_PLACEMENT is of another shape.
        """
        import torch

        if path := os.environ.get(PLACEMENT):
            layers, experts = weight.shape
            return torch.from_numpy(_fixed_map(path, (layers, num_replicas), experts=experts, ranks=num_ranks))
        old = old_global_expert_indices
        table_LP = map_slots(
            weight.detach().to("cpu", torch.float64).numpy(),
            ranks=num_ranks,
            slots=num_replicas,
            held_LP=None if old is None else old.detach().to("cpu", torch.int64).numpy(),
            moves=read_moves(os.environ),
        )
        return torch.from_numpy(table_LP)


def register() -> None:
    """Take the place of vLLM's default policy if FOURLANE_VLLM_EPLB=1; else leave vLLM alone.

    May be called any number of times in a process.

    Raises:
        SpecError: a variable of ours has a value that means nothing. vLLM does not start then.
    """
    if not switched_on(os.environ, SWITCH):
        return
    read_moves(os.environ)
    from vllm.distributed.eplb.policy import EPLB_POLICIES, AbstractEplbPolicy  # pyrefly: ignore[missing-import]

    AbstractEplbPolicy.register(FourlanePolicy)
    EPLB_POLICIES["fourlane"] = EPLB_POLICIES["default"] = FourlanePolicy


def _fixed_map(path: str, shape_LP: tuple[int, int], *, experts: int, ranks: int) -> np.ndarray:
    """Return the map of a file, which must be of the shape vLLM asks for and have no empty slot."""
    table_LP = read_physical_to_logical(path, ranks=ranks, experts=experts).phy2log
    if table_LP.shape != shape_LP:
        raise SpecError(
            f"{path}: expected {shape_LP[0]} layers of {shape_LP[1]} slots as vLLM has, got {table_LP.shape}"
        )
    if (table_LP == EMPTY).any():
        raise SpecError(f"{path}: expected no expert twice on one of {ranks} ranks")
    return table_LP.copy()
