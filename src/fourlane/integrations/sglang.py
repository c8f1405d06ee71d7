"""Fourlane's placement in SGLang, as the balancing algorithm `fourlane`; and files SGLang starts from.

`register` is an entry point of `sglang.srt.plugins`: SGLang calls it in every process. It hooks the two
functions that choose and run an algorithm, and they do as before unless `--eplb-algorithm fourlane` is given.
`patch` does the same in a process that loads no plugins. The files themselves are in `sglang_files`.

Source: sglang 0.5.23, srt/eplb/eplb_algorithms/__init__.py, srt/plugins/hook_registry.py.
"""

from __future__ import annotations

import functools
import os
import sys
from typing import TYPE_CHECKING, Any

from fourlane.integrations.eplb import map_slots, read_moves
from fourlane.integrations.sglang_files import (
    read_physical_to_logical,
    read_recorded_loads,
    write_init_expert_location,
)
from fourlane.policy.placement import Placement

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

__all__ = [
    "ALGORITHM",
    "patch",
    "read_physical_to_logical",
    "read_recorded_loads",
    "rebalance_experts",
    "register",
    "write_init_expert_location",
]

ALGORITHM = "fourlane"
ALGORITHMS = "sglang.srt.eplb.eplb_algorithms"
LOCATION = "sglang.srt.eplb.expert_location"


def rebalance_experts(
    tokens_per_expert: torch.Tensor,
    num_physical_experts: int,
    num_local_physical_experts: int,
    num_groups: int | None,  # noqa: ARG001 - SGLang's signature
    num_nodes: int,  # noqa: ARG001 - SGLang's signature
    algorithm: object,  # noqa: ARG001 - SGLang's signature; whoever calls this has chosen
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Place experts, with SGLang's signature; every rank computes the same from the same counts.

    The map this process serves with is started from, so that few experts move.

    Args:
        tokens_per_expert: [steps, layers, experts].
        num_physical_experts: slots of all ranks.
        num_local_physical_experts: slots of one rank.
        num_groups: expert groups of the model; the placement is global and does not look at them.
        num_nodes: servers; nor at them.
        algorithm: which of SGLang's algorithms was asked for.

    Returns:
        physical_to_logical_map [layers, slots], logical_to_physical_map [layers, experts, most replicas] with -1
        behind an expert's last, and logical_count [layers, experts]; int64, on the CPU.

    Raises:
        BalanceInputError: sizes that do not fit together, or counts that are not finite and >= 0.
    """
    import torch

    load_LE = tokens_per_expert.detach().to("cpu", torch.float64).sum(dim=0).numpy()
    ranks = num_physical_experts // num_local_physical_experts
    table_LP = map_slots(
        load_LE,
        ranks=ranks,
        slots=num_physical_experts,
        held_LP=_map_in_force(),
        moves=read_moves(os.environ),
    )
    placement = Placement(table_LP, experts=load_LE.shape[1], ranks=ranks)
    tables = (placement.phy2log, placement.log2phy, placement.logcnt)
    phy2log, log2phy, logcnt = (torch.from_numpy(table.copy()) for table in tables)
    return phy2log, log2phy, logcnt


def register() -> None:
    """Add the algorithm `fourlane` through SGLang's registry of hooks; the entry point.

    Raises:
        SpecError: a variable of ours has a value that means nothing; SGLang logs it, and does not know `fourlane`.
    """
    read_moves(os.environ)
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType  # pyrefly: ignore[missing-import]

    for name, hook in _HOOKS.items():
        HookRegistry.register(f"{ALGORITHMS}.{name}", hook, HookType.AROUND)


def patch() -> None:
    """Add the algorithm `fourlane` in this process, at once and without SGLang's plugins; once is enough."""
    from sglang.srt.eplb import eplb_algorithms  # pyrefly: ignore[missing-import]

    for name, hook in _HOOKS.items():
        original = getattr(eplb_algorithms, name)
        if not (isinstance(original, functools.partial) and original.func is hook):
            setattr(eplb_algorithms, name, functools.partial(hook, original))


def _compute_algorithm(original: Callable[..., Any], raw_algorithm: str, *args: Any, **kwargs: Any) -> Any:
    """Let the name `fourlane` pass, which SGLang's enumeration does not have."""
    return ALGORITHM if raw_algorithm == ALGORITHM else original(raw_algorithm, *args, **kwargs)


def _rebalance_experts(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Place experts if `fourlane` is the algorithm, always its last argument; else let SGLang do it."""
    chosen = kwargs["algorithm"] if "algorithm" in kwargs else args[-1]
    return rebalance_experts(*args, **kwargs) if chosen == ALGORITHM else original(*args, **kwargs)


_HOOKS = {"compute_algorithm": _compute_algorithm, "rebalance_experts": _rebalance_experts}


def _map_in_force() -> Any:
    """Return the map this process serves with, [layers, slots], or None before there is one."""
    location = sys.modules.get(LOCATION)  # SGLang has imported it if there is a map
    metadata = location.get_global_expert_location_metadata() if location is not None else None
    return None if metadata is None else metadata.physical_to_logical_map_cpu.long().numpy()
