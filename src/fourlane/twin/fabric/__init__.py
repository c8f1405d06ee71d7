"""The network simulated packet by packet. Names are imported when first used, the native core among them.

from fourlane.twin.fabric import leaf_spine

net = leaf_spine(leaves=16, hosts_per_leaf=8, spines=8, rate="400Gbps")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fourlane.twin.fabric.builders import fat_tree, leaf_spine, single_switch
    from fourlane.twin.fabric.compiled import CompiledScenario, Dcqcn
    from fourlane.twin.fabric.topology import Topology

__all__ = [
    "CompiledScenario",
    "Dcqcn",
    "Topology",
    "fat_tree",
    "leaf_spine",
    "single_switch",
]

_HOMES = {
    "CompiledScenario": "compiled",
    "Dcqcn": "compiled",
    "Topology": "topology",
    "fat_tree": "builders",
    "leaf_spine": "builders",
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
