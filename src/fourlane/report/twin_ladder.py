"""A ladder of a simulated cluster as tables, as the waterfall picture and as a page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fourlane.report.page import Card, Page, Section, svg_of
from fourlane.report.tables import Table, number, percent, time_text
from fourlane.report.twin_tables import sources_table, units_text, where_from
from fourlane.report.waterfall import Measured, Setting, Waterfall, overall, waterfall_figure

if TYPE_CHECKING:
    from collections.abc import Callable

    from fourlane.spec.twin import Twin
    from fourlane.twin.ladder_values import LadderResult, Rung

__all__ = ["ladder_page", "ladder_tables", "ladder_waterfall"]

_ROUTING = {"ecmp": "ECMP", "adaptive": "adaptive, by queue depth", "spray": "sprayed packet by packet"}
_QUEUE = {"shared": "one for all classes", "own": "own queue, weight and buffer"}
_ECN = {True: "marks; senders slow down", False: "off on the expert lane"}
_KV = {"hpn": "on the experts' network (HPN)", "dcn": "on a network of its own (DCN)"}
_STREAMS = {"never": "one", "always": "two", "auto": "two, where faster"}
_DROWNS = "does not keep up"


def ladder_waterfall(result: LadderResult, *, title: str = "What each measure brings") -> Waterfall:
    """Return the picture: throughput a GPU, time per output token, time to first token, at every rung."""
    rungs = result.rungs

    def over_rungs(read: Callable[[Rung], float], **told: Any) -> Measured:
        return Measured(values=tuple(map(read, rungs)), **told)

    return Waterfall(
        title=title,
        subtitle=f"{_service(result)}\n{_terms(result)}",
        states=(*(rung.name for rung in rungs), "All together"),
        quantities=(
            over_rungs(
                lambda rung: rung.peak.output_tokens_s_gpu,
                title="Throughput per GPU",
                unit="output tokens/s over all GPUs",
                better="higher",
            ),
            over_rungs(
                lambda rung: rung.peak.prefill.peak_tokens_s_gpu,
                title="Prefill alone",
                unit="prompt tokens/s a prefill GPU",
                better="higher",
                headline=False,
            ),
            over_rungs(
                lambda rung: rung.peak.decode.peak_tokens_s_gpu,
                title="Decode alone",
                unit="tokens/s a decode GPU",
                better="higher",
                headline=False,
            ),
            over_rungs(
                lambda rung: rung.point.tpot.mean * 1e3, title="TPOT, mean", unit="ms", better="lower", none=_DROWNS
            ),
            over_rungs(
                lambda rung: rung.point.ttft.mean * 1e3, title="TTFT, mean", unit="ms", better="lower", none=_DROWNS
            ),
        ),
        settings=_settings([rung.twin for rung in rungs]),
        footer=_footer(result),
    )


def _service(result: LadderResult) -> str:
    twin = result.rungs[-1].twin
    return f"{result.name}: {twin.model} on {twin.cluster}, {result.gpus:,} GPUs in {units_text(twin)}"


def _terms(result: LadderResult) -> str:
    return (
        f"Throughput: the most each rung can do, bound by prefill or decode. Latencies: all at {number(result.rate)} "
        "requests/s."
    )


def _footer(result: LadderResult) -> str:
    worked = f"Closed form over packet-level exchange times, worked out in {number(result.seconds)} s."
    at = f"{number(result.rate)} requests/s are {result.rate_says}."
    left_out = [f"{name} left out: {why}." for name, why in result.skipped.items()]
    return " ".join((worked, at, *left_out))


def _settings(twins: list[Twin]) -> tuple[Setting, ...]:
    """Return what the measures change, at every rung; what none of them changes is left out."""
    read: dict[str, Callable[[Twin], str]] = {
        "Routing": lambda twin: _ROUTING.get(twin.lanes.routing or "", "as planned"),
        "Expert queue": lambda twin: _QUEUE.get(twin.lanes.expert_queue or "", "as planned"),
        "ECN": lambda twin: "as planned" if twin.lanes.ecn is None else _ECN[twin.lanes.ecn],
        "KV cache": lambda twin: _KV.get(twin.lanes.kv or "", "as planned"),
        "Experts": _experts,
        "Streams": _streams,
    }
    found = (Setting(name=name, values=tuple(map(say, twins))) for name, say in read.items())
    return tuple(setting for setting in found if len(set(setting.values)) > 1)


def _experts(twin: Twin) -> str:
    redundant = [pool.redundant_experts for pool in twin.pools().values()]
    if twin.experts.forced:
        return "forced balance"
    more = str(redundant[0]) if len(set(redundant)) == 1 else " + ".join(map(str, redundant))
    where = "in order" if twin.experts.placement == "linear" else "placed by load"
    what = f"{more} redundant, {where}" if any(redundant) else f"one of each, {where}"
    return f"{what}, batches split" if twin.experts.split and any(redundant) else what


def _streams(twin: Twin) -> str:
    ways = {phase: _STREAMS[pool.overlap] for phase, pool in twin.pools().items()}
    if len(set(ways.values())) == 1:
        return ways["prefill"]
    return ", ".join(f"{phase}: {way}" for phase, way in ways.items())


def ladder_tables(result: LadderResult) -> list[Table]:
    """Return the ladder as tables: what each rung reaches, and what each measure gains."""
    return [_reached(result), _gained(result)]


def _reached(result: LadderResult) -> Table:
    rows = tuple((rung.name, *_figures(rung)) for rung in result.rungs)
    columns = (
        "rung", "tokens/s a GPU", "requests/s", "bound by", "prefill alone", "decode alone", "TPOT mean", "p99",
        "TTFT mean", "p99 ", "exchange", "beside others",
    )  # fmt: skip
    title = (
        f"Throughput: the most each rung can do, and each phase alone, a GPU of it; latencies at "
        f"{number(result.rate)} requests/s; exchange: of a decode step"
    )
    return Table(title=title, columns=columns, rows=rows)


def _figures(rung: Rung) -> tuple[str, ...]:
    point, peak = rung.point, rung.peak
    rates = (peak.output_tokens_s_gpu, peak.rate)
    alone = (peak.prefill.peak_tokens_s_gpu, peak.decode.peak_tokens_s_gpu)
    times = (point.tpot.mean, point.tpot.p99, point.ttft.mean, point.ttft.p99, rung.exchange_s.get("decode"))
    slower = rung.slowdown.get("decode")
    beside = "-" if slower is None else f"{slower:.2f} x"
    return (*map(number, rates), peak.binds, *map(number, alone), *map(time_text, times), beside)


def _gained(result: LadderResult) -> Table:
    def cells(gain: dict[str, float]) -> tuple[str, ...]:
        more = (gain.get(name) for name in ("throughput", "prefill", "decode"))
        less = (gain.get(name) for name in ("tpot", "ttft"))
        return (*map(_signed, more), *(_signed(None if saved is None else -saved) for saved in less))

    rows = [(rung.name, rung.measure, *cells(rung.gain)) for rung in result.rungs[1:]]
    rows.append(("All together", "", *cells(result.total)))
    rows += [(name, f"left out: {why}", *"-----") for name, why in result.skipped.items()]
    columns = ("measure", "", "throughput", "prefill alone", "decode alone", "TPOT", "TTFT")
    return Table(
        title="What each measure brings, over the rung before", columns=columns, rows=tuple(rows), left=frozenset({""})
    )


def _signed(change: float | None) -> str:
    if change is None:
        return "-"
    text = percent(change)
    return "0.0 %" if text == "-0.0 %" else f"+{text}" if change > 0 and text != "0.0 %" else text


def ladder_page(result: LadderResult) -> Page:
    """Return the page: the picture, the tables, and the source of every figure."""
    waterfall = ladder_waterfall(result)
    with waterfall_figure(waterfall) as figure:
        drawn = svg_of(figure)
    cards = [Card(name="GPUs", value=f"{result.gpus:,}", note=result.name)]
    for measured in (each for each in waterfall.quantities if each.headline):
        first, last = measured.known(0), measured.known(-1)
        between = f"{number(first) if first else '-'} to {number(last) if last else '-'} {measured.unit}"
        mood = "mark" if first is None or last is None else "good" if measured.better_from(first, last) else "bad"
        cards.append(Card(name=measured.title, value=overall(measured), note=between, mood=mood))
    sources: dict[str, str] = {}
    for rung in result.rungs:
        told = {**where_from(rung.point), **rung.sources}
        sources |= {f"{rung.name}: {name}": text for name, text in told.items()}
    return Page(
        title=f"{waterfall.title}: {result.name}",
        lead=waterfall.subtitle,
        cards=tuple(cards),
        sections=(
            Section(title="The ladder", figures=(drawn,)),
            Section(title="Figures", tables=tuple(ladder_tables(result))),
            Section(title="Sources", folded=(sources_table(sources),)),
        ),
        footer=waterfall.footer,
    )
