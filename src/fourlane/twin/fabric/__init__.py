"""The network simulated packet by packet. Names are imported when first used, the native core among them.

from fourlane.twin.fabric import leaf_spine

net = leaf_spine(leaves=16, hosts_per_leaf=8, spines=8, rate="400Gbps")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fourlane.twin.fabric.builders import fat_tree, leaf_spine, multi_plane, single_switch
    from fourlane.twin.fabric.cluster_topology import rail_clos
    from fourlane.twin.fabric.collectives import halving_doubling_all_reduce, repeated, ring_all_reduce
    from fourlane.twin.fabric.compiled import CompiledScenario, Dcqcn
    from fourlane.twin.fabric.expert_forwarding import NormalKernels
    from fourlane.twin.fabric.expert_routing import ExpertRouting
    from fourlane.twin.fabric.expert_traffic import LowLatencyKernels
    from fourlane.twin.fabric.expert_workloads import expert_flows, expert_layers
    from fourlane.twin.fabric.flows import Flows, Steps, concatenated, in_turn
    from fourlane.twin.fabric.named import named
    from fourlane.twin.fabric.parallel import run_many
    from fourlane.twin.fabric.results import Results
    from fourlane.twin.fabric.scenario import Scenario
    from fourlane.twin.fabric.scenario_file import load_scenario
    from fourlane.twin.fabric.settings import ClassSettings, DcqcnSettings, Failure, QueueSettings
    from fourlane.twin.fabric.simulator import Simulator
    from fourlane.twin.fabric.topology import Topology
    from fourlane.twin.fabric.workloads import all_to_all, between, incast, kv_transfers, matrix, permutation, poisson

__all__ = [
    "ClassSettings",
    "CompiledScenario",
    "Dcqcn",
    "DcqcnSettings",
    "ExpertRouting",
    "Failure",
    "Flows",
    "LowLatencyKernels",
    "NormalKernels",
    "QueueSettings",
    "Results",
    "Scenario",
    "Simulator",
    "Steps",
    "Topology",
    "all_to_all",
    "between",
    "concatenated",
    "expert_flows",
    "expert_layers",
    "fat_tree",
    "halving_doubling_all_reduce",
    "in_turn",
    "incast",
    "kv_transfers",
    "leaf_spine",
    "load_scenario",
    "matrix",
    "multi_plane",
    "named",
    "permutation",
    "poisson",
    "rail_clos",
    "repeated",
    "ring_all_reduce",
    "run_many",
    "single_switch",
]

_HOMES = {
    "ClassSettings": "settings",
    "CompiledScenario": "compiled",
    "Dcqcn": "compiled",
    "DcqcnSettings": "settings",
    "ExpertRouting": "expert_routing",
    "Failure": "settings",
    "Flows": "flows",
    "LowLatencyKernels": "expert_traffic",
    "NormalKernels": "expert_forwarding",
    "QueueSettings": "settings",
    "Results": "results",
    "Scenario": "scenario",
    "Simulator": "simulator",
    "Steps": "flows",
    "Topology": "topology",
    "all_to_all": "workloads",
    "between": "workloads",
    "concatenated": "flows",
    "expert_flows": "expert_workloads",
    "expert_layers": "expert_workloads",
    "fat_tree": "builders",
    "halving_doubling_all_reduce": "collectives",
    "in_turn": "flows",
    "incast": "workloads",
    "kv_transfers": "workloads",
    "leaf_spine": "builders",
    "load_scenario": "scenario_file",
    "matrix": "workloads",
    "multi_plane": "builders",
    "named": "named",
    "permutation": "workloads",
    "poisson": "workloads",
    "rail_clos": "cluster_topology",
    "repeated": "collectives",
    "ring_all_reduce": "collectives",
    "run_many": "parallel",
    "single_switch": "builders",
}


def __getattr__(name: str) -> object:
    """Import a public name from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
