"""Which topology the subcommands of `fourlane fabric` work on: that of a cluster, or a plain one."""

from __future__ import annotations

import inspect
import tomllib
from typing import TYPE_CHECKING

from fourlane.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fourlane.spec.cluster import NetworkName
    from fourlane.twin.fabric.topology import Topology

__all__ = ["BUILDERS", "USUAL_CLUSTER", "USUAL_LATENCY_CLUSTER", "built"]

USUAL_CLUSTER = "h800-ft"
USUAL_LATENCY_CLUSTER = "low-latency"
BUILDERS = ("single-switch", "leaf-spine", "fat-tree", "multi-plane")


def built(cluster: str | None, builder: str | None, overrides: Sequence[str], *, network: NetworkName) -> Topology:
    """Build the topology of a cluster's network, or a plain one.

    Args:
        cluster: a file or a name of the catalog; None for the usual one.
        builder: a plain topology instead; each override then gives one of its arguments.
        overrides: "path=value" texts.
        network: of the cluster.

    Raises:
        SpecError: both are given, or something in them is wrong.
    """
    if builder is None:
        from fourlane.spec.load import load_cluster
        from fourlane.twin.fabric.cluster_topology import rail_clos

        return rail_clos(load_cluster(cluster or USUAL_CLUSTER, overrides=overrides), network)
    if cluster is not None:
        raise SpecError(f"--builder {builder}: expected no cluster beside it, got {cluster}; leave one of them out")
    return _plain(builder, overrides)


def _plain(builder: str, overrides: Sequence[str]) -> Topology:
    from fourlane.twin.fabric import builders

    make: Callable[..., Topology] = getattr(builders, builder.replace("-", "_"))
    counts = [name for name, each in inspect.signature(make).parameters.items() if each.kind != each.VAR_KEYWORD]
    known = [*counts, *builders.Equipment.__annotations__]
    arguments: dict[str, object] = {}
    faults: list[str] = []
    for override in overrides:
        name, equals, text = (part.strip() for part in override.partition("="))
        if not equals or name not in known:
            faults.append(f"--set {override}: expected NAME=VALUE with a name of {builder}: {', '.join(known)}")
        else:
            arguments[name] = _value(text)
    if faults:
        raise SpecError(*faults)
    return make(**arguments)


def _value(text: str) -> object:
    """Return a TOML value, or the text itself."""
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return found["value"] if found.keys() == {"value"} else text
