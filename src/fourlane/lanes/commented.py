"""Write a cluster's default lane plan as TOML for people: every figure below the reason for it."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from fourlane.lanes.default_plan import default_plan
from fourlane.lanes.reasons import PFC_REASONS, TRIMMING_REASONS, reasons
from fourlane.spec.traffic import TrafficClass
from fourlane.spec.writing import inline

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import msgspec

    from fourlane.lanes.reasons import Reason
    from fourlane.spec.cluster import Cluster

__all__ = ["commented_plan"]

_WIDTH = 110
_ABOUT = {
    TrafficClass.EXPERT: "tokens to their experts and back: the all-to-all of every layer",
    TrafficClass.COLLECTIVE: "all-reduce, all-gather and the like",
    TrafficClass.KV: "KV cache from prefill to decode",
    TrafficClass.CONTROL: "congestion notifications (CNP), clear-to-send, the service's own messages",
    TrafficClass.BULK: "weights, checkpoints, logs: what may wait",
    TrafficClass.DEFAULT: "everything unmarked",
}


def commented_plan(cluster: Cluster) -> str:
    """Return the default plan as commented TOML that reads back as `default_plan(cluster)`."""
    plan = default_plan(cluster)
    lines = [*_head(cluster), f"version = {plan.version}", f"name = {inline(plan.name)}"]
    for kind in TrafficClass:
        lines += ["", "", *_comment(_ABOUT[kind]), f"[classes.{kind.value}]"]
        lines += _fields(plan.classes[kind], reasons(cluster, kind))
    lines += ["", "", *_comment("how pauses (PFC) are guarded, wherever a class is lossless"), "[pfc]"]
    lines += _fields(plan.pfc, PFC_REASONS)
    lines += ["", "", *_comment("what becomes of a packet that a class with trim = true cannot queue"), "[trimming]"]
    lines += _fields(plan.trimming, TRIMMING_REASONS)
    return "\n".join(lines) + "\n"


def _head(cluster: Cluster) -> Iterator[str]:
    yield from _comment(
        f"Lane plan of cluster {cluster.name}, as fourlane works it out; it is yours to edit. Above each figure: why, "
        "and [source]. Percents are of a link."
    )
    yield from _comment("Prove it:   fourlane lanes check FILE --cluster CLUSTER")
    yield from _comment("Render it:  fourlane lanes render FILE --cluster CLUSTER --target all -o DIR")
    yield ""


def _fields(table: msgspec.Struct, why: Mapping[str, Reason]) -> Iterator[str]:
    for name in table.__struct_fields__:
        value = getattr(table, name)
        if value is not None:
            yield from _comment(f"{why[name].why} [{why[name].source}]")
            yield f"{name} = {inline(value)}"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False, break_on_hyphens=False
    )
