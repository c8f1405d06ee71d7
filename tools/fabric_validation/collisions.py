"""Flow hashing against balls in bins; polarised hashes; what collisions cost a permutation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fabric_validation.networks import ECMP, TIER_SEEDS, compile_flows, flow_hashes, run, uplinks
from fabric_validation.page import Claim, Part, Plot, Table
from fourlane.report.plots import BLUE, ORANGE, figure_of, save_figure
from fourlane.twin.fabric.builders import fat_tree, leaf_spine
from fourlane.twin.fabric.theory import bins_used_share, most_in_a_bin, most_in_a_bin_cdf

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["balls_in_bins", "chi_square", "polarised"]

_PACKET = 1024


def balls_in_bins(*, trials: int, sizes: tuple[tuple[int, int], ...] = ((8, 8), (16, 8), (16, 16), (32, 32))) -> Part:
    """Count flows on each uplink of a leaf, again and again with other ports; compare with balls in bins.

    Args:
        trials: leaves to draw, each with its own flows.
        sizes: (flows of a leaf, uplinks) to try.
    """
    part = Part("ECMP: balls in bins", _BALLS)
    rows, drawn = [], {}
    for flows, links in sizes:
        counts = np.concatenate([_uplink_counts(flows, links, seed) for seed in range(-(-trials // _PAIRS))])[:trials]
        fullest = counts.max(axis=1)
        mean, error = fullest.mean(), fullest.std(ddof=1) / np.sqrt(len(fullest))
        theory, used = most_in_a_bin(flows, links), (counts > 0).mean()
        name = f"{flows} flows on {links} links"
        part.claims.append(
            Claim(
                f"{name}: mean of the fullest link, {len(fullest)} draws",
                f"{theory:.3f} flows",
                f"{mean:.3f} ± {error:.3f}",
                "within 3 standard errors",
                abs(mean - theory) <= 3 * error,
            )
        )
        statistic, limit = chi_square(fullest, most_in_a_bin_cdf(flows, links))
        part.claims.append(
            Claim(
                f"{name}: distribution of the fullest link",
                f"chi-square below {limit:.1f}",
                f"{statistic:.1f}",
                "99.9 % of true draws",
                statistic <= limit,
            )
        )
        rows.append([name, f"{theory:.3f}", f"{mean:.3f}", f"{bins_used_share(flows, links):.3f}", f"{used:.3f}"])
        drawn[name] = (fullest, most_in_a_bin_cdf(flows, links))
    columns = ("case", "fullest link, theory", "simulated", "share of links used, theory", "simulated")
    part.tables.append(Table("Flows on the fullest link, and links with any flow", columns, rows))
    part.plots.append(Plot("ecmp-bins", "Flows on the fullest link, simulated and by theory", _bars(drawn)))
    return part


_PAIRS = 32


def _uplink_counts(flows: int, links: int, seed: int) -> NDArray[np.int64]:
    """Return [leaves, uplinks]: flows of each sending leaf on each of its uplinks, from one run."""
    topology = leaf_spine(leaves=2 * _PAIRS, hosts_per_leaf=flows, spines=links)
    host = np.arange(2 * _PAIRS * flows).reshape(2 * _PAIRS, flows)
    source, target = host[0::2].ravel(), host[1::2].ravel()
    forth, back = flow_hashes(source, target, seed=seed)
    made = compile_flows(
        topology, source, target, _PACKET, class_routing=[ECMP], flow_hash=forth, flow_back_hash=back, seed=seed
    )
    sent = run(made)["port_tx_packets"].sum(axis=1)
    return np.array([sent[uplinks(topology, topology.hosts + leaf)] for leaf in range(0, 2 * _PAIRS, 2)])


def chi_square(found: NDArray[np.int64], cdf: NDArray[np.float64]) -> tuple[float, float]:
    """Return the chi-square statistic of draws against a distribution, and what 99.9 % of true draws stay below.

    Values that fewer than 5 draws are expected for are taken together with their neighbours.
    """
    expected = np.diff(cdf, prepend=0.0) * len(found)
    counted = np.bincount(found, minlength=len(expected))[: len(expected)]
    groups, wanted, seen = [], 0.0, 0
    for want, see in zip(expected, counted, strict=True):
        wanted, seen = wanted + want, seen + int(see)
        if wanted >= 5:
            groups.append([wanted, seen])
            wanted, seen = 0.0, 0
    groups[-1][0] += wanted
    groups[-1][1] += seen
    free = max(len(groups) - 1, 1)
    statistic = sum((seen - want) ** 2 / want for want, seen in groups)
    limit = free * (1 - 2 / (9 * free) + 3.0902 * np.sqrt(2 / (9 * free))) ** 3  # Wilson and Hilferty
    return float(statistic), float(limit)


def _bars(drawn: dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]) -> Callable[[Path], None]:
    def draw(path: Path) -> None:
        with figure_of("Flows on the fullest uplink of a leaf", height=3.4) as figure:
            for axes, (name, (fullest, cdf)) in zip(figure.subplots(1, len(drawn)), drawn.items(), strict=True):
                pmf = np.diff(cdf, prepend=0.0)
                shown = np.flatnonzero(pmf > 1e-3)
                share = np.bincount(fullest, minlength=len(pmf))[: len(pmf)] / len(fullest)
                axes.bar(shown, share[shown], color=BLUE, width=0.8, label="simulated")
                axes.plot(shown, pmf[shown], "o", color=ORANGE, markersize=4, label="theory")
                axes.set_title(name)
                axes.set_xlabel("flows on the fullest link")
            figure.axes[0].set_ylabel("share of draws")
            figure.axes[-1].legend(frameon=False)
            save_figure(figure, path)

    return draw


def polarised(*, flows_a_host: int = 16) -> Part:
    """Hash with the same seed in two tiers, and with different ones; count the links used between the upper tiers."""
    part = Part("ECMP: polarisation", _POLARISED)
    k = 8
    links = k // 2
    different = _core_links_used(k, flows_a_host, TIER_SEEDS)
    same = _core_links_used(k, flows_a_host, [1] * 8)
    part.claims.append(
        Claim(
            "a seed for each tier: share of spine uplinks used",
            f"{bins_used_share(flows_a_host * links * links, links * links):.3f}",
            f"{different:.3f}",
            "at least 0.95",
            different >= 0.95,
        )
    )
    part.claims.append(
        Claim(
            "one seed for all tiers: share of spine uplinks used",
            f"1/{links} = {1 / links:.3f}",
            f"{same:.3f}",
            "exactly",
            same == 1 / links,
        )
    )
    return part


def _core_links_used(k: int, flows_a_host: int, seeds: list[int]) -> float:
    """Return the share of links from the spines of a fat tree up to its superspines that carry data between pods."""
    topology = fat_tree(k)
    hosts = topology.hosts
    source = np.repeat(np.arange(hosts // 2), flows_a_host)
    target = source + hosts // 2
    forth, back = flow_hashes(source, target, seed=3)
    made = compile_flows(
        topology, source, target, _PACKET, class_routing=[ECMP], flow_hash=forth, flow_back_hash=back, tier_seed=seeds
    )
    sent = run(made)["port_tx_packets"].sum(axis=1)
    spines = [n for n in np.flatnonzero(topology.node_tier == 2) if topology.node_pod[n] < k // 2]
    return float(np.mean([sent[uplinks(topology, node)] > 0 for node in spines]))


_BALLS = """
Each host of a leaf sends one flow to the next leaf; the flow's 5-tuple is hashed onto an uplink. The number of flows on
the fullest uplink, drawn over and over with other UDP ports, must be distributed as the fullest of as many bins when
as many balls are thrown. (The distribution is computed exactly.)
"""
_POLARISED = """
A fat tree of 8-port switches: flows between pods are hashed twice, at the leaf and at the spine. With one seed for all
switches the second hash repeats the first: a spine gets only flows whose hash points to one and the same of its four
uplinks, and three quarters of the links to the top tier carry nothing.
"""
