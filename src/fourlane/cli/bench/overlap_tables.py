"""What `fourlane bench overlap` measured, as cases, as a table, and as rows of a trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.engine.measured_passes import ALONE
from fourlane.report.overlap_plots import Case
from fourlane.report.perfetto import Slice, Track
from fourlane.report.tables import Table, milliseconds, percent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fourlane.cli.bench.options import Link
    from fourlane.engine.measured_passes import MeasuredWay, Mode, RankSpan, RankTrace

__all__ = ["cases_of", "overlap_table", "tracks_of"]

_MODES = {"single": "one stream", "dual": "two streams"}


def cases_of(found: Sequence[MeasuredWay], link: Link | None, implementation: str) -> list[Case]:
    """Return a case for each number of tokens."""
    by_way = {(each.tokens, each.way.implementation, each.way.mode): each for each in found}
    return [_case(by_way, tokens, link, implementation) for tokens in dict.fromkeys(each.tokens for each in found)]


def _case(ways: Mapping[tuple[int, str, Mode], MeasuredWay], tokens: int, link: Link | None, over: str) -> Case:
    single, rule = ways[tokens, over, "single"], ways[tokens, over, "auto"]
    return Case(
        link="no link" if link is None else str(link),
        tokens=tokens,
        gloo_s=ways[tokens, "torch_all_to_all", "single"].median_s,
        single_s=single.median_s,
        dual_s=ways[tokens, over, "dual"].median_s,
        alone_s=ways[tokens, ALONE, "single"].median_s,
        by_rule=single.median_s / rule.median_s,
        dual_share=rule.dual_passes / len(rule.seconds),
        predicted=rule.predicted,
    )


def overlap_table(cases: Sequence[Case], *, title: str, implementation: str) -> Table:
    """Return the table of all cases."""
    columns = (
        "link", "tokens a rank", "gloo, one stream", f"{implementation}, one stream", "communication", "two streams",
        "gain", "at most", "x gloo", "by rule", "in two", "predicted",
    )  # fmt: skip
    rows = tuple(
        (
            case.link,
            f"{case.tokens:,}",
            milliseconds(case.gloo_s),
            milliseconds(case.single_s),
            percent(case.communication),
            milliseconds(case.dual_s),
            f"{case.gain:.2f}",
            f"{case.most:.2f}",
            f"{case.gloo_s / case.dual_s:.2f}",
            f"{case.by_rule:.2f}",
            f"{case.dual_share:.0%}",
            "" if case.predicted is None else f"{case.predicted:.2f}",
        )
        for case in cases
    )
    return Table(title=f"A forward pass: {title}", columns=columns, rows=rows)


def tracks_of(traces: Sequence[Sequence[RankTrace]]) -> list[Track]:
    """Return the rows of a trace: for each mode and rank its streams, and what travels for them.

    Passes of all modes begin at the same time, that of the first rank to begin.
    """
    tracks: list[Track] = []
    modes = [each.mode for each in traces[0]] if traces else []
    for place, mode in enumerate(modes):
        began_s = min(span.begin_s for rank in traces for span in rank[place].spans)
        for rank, recorded in enumerate(traces):
            process = f"{_MODES[mode]}, rank {rank}"
            for name, spans in _rows(recorded[place].spans):
                tracks.append(Track(process=process, name=name, slices=[_slice(span, began_s) for span in spans]))
    return tracks


def _rows(spans: Sequence[RankSpan]) -> Iterator[tuple[str, list[RankSpan]]]:
    for stream in (0, 1):
        own = [span for span in spans if span.stream == stream and span.kind != "communicate"]
        if own:
            yield f"stream {stream}", own
    travelling = [span for span in spans if span.kind == "communicate"]
    if travelling:
        yield "exchange", travelling


def _slice(span: RankSpan, began_s: float) -> Slice:
    waits = span.kind == "wait"
    return Slice(
        name=f"wait before {span.name}" if waits else span.name,
        category=span.kind,
        begin_s=span.begin_s - began_s,
        end_s=span.end_s - began_s,
        notes={"layer": span.layer, "stream": span.stream},
    )
