"""The cabling of folded Clos networks: leaves, spines and superspines, in pods, in planes.

Between two tiers, link j of the i-th switch below goes to switch (i * links + j) mod (switches above): every switch
below reaches every one above where it has links enough, parallel links are spread evenly, and in full fat trees this is
the usual core wiring. Not for which host stands on which leaf: the builders say that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fourlane.twin.fabric.topology import LEAF, SPINE, SUPERSPINE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fourlane.twin.fabric.draft import Cable, Draft, Gear

__all__ = ["Tiers", "lay_clos", "wired"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiers:
    """Counts in one plane. Leaves and spines are cut into `blocks` of equal size, full meshes of their own.

    `pods` are blocks, or several blocks in one place (a block for each rail); superspines join all blocks.
    `leaf_up` and `spine_up` are links upwards from one switch.
    """

    leaves: int
    spines: int = 0
    superspines: int = 0
    leaf_up: int = 0
    spine_up: int = 0
    pods: int = 1
    blocks: int = 1


def lay_clos(
    draft: Draft,
    tiers: Tiers,
    leaf_of: NDArray[np.int64],
    *,
    gear: tuple[Gear, Gear, Gear],
    cables: tuple[Cable, Cable, Cable],
    networks: Sequence[int],
) -> None:
    """Add the switches and cables of one network, or of like planes.

    Args:
        draft: where to.
        tiers: counts of one plane.
        leaf_of: [hosts], the leaf of each host, from 0.
        gear: leaf, spine, superspine.
        cables: host to leaf, leaf to spine, spine to superspine.
        networks: a place of a network for each plane.
    """
    leaf_pod = np.arange(tiers.leaves) // (tiers.leaves // tiers.pods)
    spine_pod = np.arange(tiers.spines) // max(1, tiers.spines // tiers.pods)
    every_pod = np.full(tiers.superspines, -1)
    leaf0 = [draft.switches(tiers.leaves, gear[0], tier=LEAF, network=each, pod=leaf_pod) for each in networks]
    spine0 = [draft.switches(tiers.spines, gear[1], tier=SPINE, network=each, pod=spine_pod) for each in networks]
    super0 = [
        draft.switches(tiers.superspines, gear[2], tier=SUPERSPINE, network=each, pod=every_pod) for each in networks
    ]
    hosts = np.arange(len(leaf_of), dtype=np.int64)
    for plane, network in enumerate(networks):
        draft.cables(hosts, leaf0[plane] + leaf_of, cables[0], network=network)
        below, above = wired(tiers.leaves, tiers.leaf_up, tiers.spines, blocks=tiers.blocks, joined=False)
        draft.cables(leaf0[plane] + below, spine0[plane] + above, cables[1], network=network)
        below, above = wired(tiers.spines, tiers.spine_up, tiers.superspines, blocks=tiers.blocks, joined=True)
        draft.cables(spine0[plane] + below, super0[plane] + above, cables[2], network=network)


def wired(
    below: int, links: int, above: int, *, blocks: int, joined: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the lower and the upper switch of every cable between two tiers.

    Args:
        below: switches of the lower tier, in `blocks` of equal size.
        links: upward from each.
        above: switches of the upper tier.
        blocks: how many.
        joined: the upper tier serves all blocks, rather than being cut into them too.
    """
    if not links or not above:
        nothing = np.zeros(0, dtype=np.int64)
        return nothing, nothing
    size = below // blocks
    lower = np.repeat(np.arange(below, dtype=np.int64), links)
    link = np.tile(np.arange(links, dtype=np.int64), below)
    reach = above if joined else above // blocks
    upper = (lower % size * links + link) % reach
    return lower, upper if joined else upper + lower // size * reach
