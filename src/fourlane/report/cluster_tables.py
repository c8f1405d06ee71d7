"""What all traffic of a service does to itself on its cluster, as tables and bars: slowdown, use of links and lanes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.report.tables import Table, number, percent
from fourlane.report.twin_plots import Use

if TYPE_CHECKING:
    from fourlane.twin.cluster_use import ClusterUse
    from fourlane.twin.window_packets import WindowPackets

__all__ = ["cluster_tables", "link_uses", "packets_table"]

_USED = 5e-5
"""A share below this is not worth a bar or a row."""


def cluster_tables(use: ClusterUse) -> list[Table]:
    """Return how much slower exchanges are beside all else, and how busy links are, tier by tier and one by one."""
    return [_slowdowns(use), _tiers(use), _busiest(use)]


def _slowdowns(use: ClusterUse) -> Table:
    rows = [
        (f"{phase} exchange", *(f"{factor:.2f} x" for factor in (slow.units, slow.kv, slow.all, slow.worst)))
        for phase, slow in use.slowdown.items()
    ]
    rows.append(("KV transfer", "-", "-", f"{use.kv_slowdown:.2f} x", "-"))
    columns = ("takes as long as alone, beside", "other units", "KV cache", "both", "both, worst seen")
    return Table(title="Beside all other traffic", columns=columns, rows=tuple(rows))


def _tiers(use: ClusterUse) -> Table:
    lanes = list(dict.fromkeys(name for tier in use.tiers for name, share in tier.queues.items() if share > _USED))
    rows = tuple(
        (
            f"{tier.network}: {tier.tiers}",
            f"{tier.ports:,}",
            percent(tier.mean),
            percent(tier.most),
            *(percent(tier.queues.get(lane, 0.0)) for lane in lanes),
        )
        for tier in use.tiers
    )
    columns = ("links", "ports", "used", "busiest", *lanes)
    return Table(title="Links, tier by tier (mean over time, and by lane)", columns=columns, rows=rows)


def _busiest(use: ClusterUse) -> Table:
    rows = tuple((link.name, percent(link.share), _lanes_of(link.queues)) for link in use.busiest)
    columns = ("busiest links between switches", "used", "by")
    return Table(title="Busiest links", columns=columns, rows=rows, left=frozenset({"by"}))


def _lanes_of(queues: dict[str, float]) -> str:
    return ", ".join(f"{name} {number(share * 100)} %" for name, share in queues.items() if share > _USED)


def packets_table(seen: WindowPackets) -> Table:
    """Return how long exchanges of a window take the network, packet by packet and at flow level."""
    rows = tuple(
        (
            f"{each.exchange.phase} unit {each.exchange.unit}: {each.exchange.operation}",
            f"{each.exchange.tokens:,}",
            f"{each.exchange.start_s * 1e6:,.0f} us",
            f"{each.packets_us:,.1f} us",
            f"{each.flows_us:,.1f} us",
            percent(each.flows_us / each.packets_us - 1) if each.packets_us else "-",
        )
        for each in seen.exchanges
    )
    columns = ("exchange", "tokens a rank", "begins after", "by packets", "at flow level", "apart")
    kv = f", and {len(seen.kv_us):,} transfers of a layer's KV cache" if seen.kv_us else ""
    return Table(title=f"Packet by packet: the next exchange of some units{kv}", columns=columns, rows=rows)


def link_uses(use: ClusterUse) -> list[Use]:
    """Return the bars: tiers on average, then the busiest links."""
    tiers = [
        Use(
            name=f"{tier.network}: {tier.tiers}",
            share=tier.mean,
            group="mean of a tier",
            note=f"busiest {percent(tier.most)}",
        )
        for tier in use.tiers
    ]
    links = [Use(name=link.name, share=link.share, group="one link") for link in use.busiest]
    return [*tiers, *links]
