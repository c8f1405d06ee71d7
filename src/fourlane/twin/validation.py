"""All published rows there are, worked out: serving, kernels, exchange, networks; and flow level held against packets.

Serving and kernels take seconds; the others are simulated packet by packet and take a minute or two. Not for
tables and pages (`fourlane.report.validation_page`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.twin.fabric.exchange_validation import simulate_exchanges
from fourlane.twin.fabric.expert_kernels import OPERATIONS, expert_kernels, published_exchanges
from fourlane.twin.fabric.network_validation import observations, simulate_observation
from fourlane.twin.flow_level.validation import check_flow_level, flow_level_cases
from fourlane.twin.published_serving import grouped_gemms, published_serving
from fourlane.twin.serving_validation import gemm_checks, serving_checks
from fourlane.twin.validation_values import GROUPS, Check, Group

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fourlane.twin.fabric.parallel import ManyProgress

__all__ = ["rows_of", "validate"]


def rows_of(groups: Sequence[Group] = GROUPS) -> int:
    """Return how many rows groups have."""
    published = published_serving()
    counts: dict[Group, int] = {
        "serving": sum(map(len, (published.rows, published.overlaps, published.balances, published.limits))),
        "kernels": 2 * len(grouped_gemms().ranks),
        "exchange": len(OPERATIONS) * len(published_exchanges()),
        "network": len(observations()),
        "flow level": len(flow_level_cases()),
    }
    return sum(counts[group] for group in groups)


def validate(
    groups: Sequence[Group] = GROUPS,
    *,
    processes: int | None = None,
    progress: Callable[[float, str], object] | None = None,
) -> Iterator[Check]:
    """Yield published rows, worked out, group by group.

    Args:
        groups: which.
        processes: that simulate packets at once; None: as many as there are processors.
        progress: called while packets are simulated, with the share of those of a group, and what is done.
    """
    made: dict[Group, Callable[[], Iterator[Check]]] = {
        "serving": serving_checks,
        "kernels": gemm_checks,
        "exchange": lambda: _exchange(processes, progress),
        "network": _network,
        "flow level": lambda: _flow_level(processes),
    }
    for group in groups:
        yield from made[group]()


def _exchange(processes: int | None, progress: Callable[[float, str], object] | None) -> Iterator[Check]:
    def told(now: ManyProgress) -> None:
        if progress is not None:
            progress(now.share, f"exchange: {now.done} of {now.total} packet runs")

    for each in simulate_exchanges(published_exchanges(), processes=processes, progress=told):
        row = each.row
        name = f"{row.name}: {each.operation}"
        fitted = expert_kernels()[row.kernels].fitted
        yield Check(
            group="exchange",
            name=name,
            unit="GB/s" if row.in_rates else "us",
            published=f"{each.published:g}",
            figure=each.figure,
            error=each.error,
            bar=f"within {row.tolerance:.0%}, same bottleneck",
            within=each.within,
            fitted=tuple(figure for figure, rows in fitted.items() if {row.name, name} & set(rows)),
            source=row.source,
            sources={"network": f"packets, busiest port: {each.bottleneck}"},
        )


def _network() -> Iterator[Check]:
    done: set[str] = set()
    for name in observations():
        for each in [] if name in done else simulate_observation(name):
            done.add(each.name)
            row = each.row
            yield Check(
                group="network",
                name=row.what,
                unit=row.unit,
                published=row.shown,
                figure=each.figure,
                error=None if row.published is None else each.figure / row.published - 1,
                bar=f"{row.least:g} to {row.most:g}: {row.why}",
                within=each.within,
                held=not row.differs,
                assumed=f"it is known to differ: {row.differs}" if row.differs else "nothing",
                source=row.source,
                sources={"network": f"packets: {each.scenario}"},
            )


def _flow_level(processes: int | None) -> Iterator[Check]:
    for each in check_flow_level(processes=processes):
        yield Check(
            group="flow level",
            name=each.name,
            unit="us",
            published=f"{each.packets_us:.1f} us by packets",
            figure=each.flows_us,
            error=each.error,
            bar=f"{each.least:+.0%} to {each.most:+.0%}",
            within=each.within,
            assumed=each.why or "nothing",
            source="the same scenario simulated packet by packet",
            sources={"network": "max-min fair rates"},
        )
