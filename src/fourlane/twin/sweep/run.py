"""Run a sweep: points that are not known yet, in a pool, each written down as it comes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from fourlane import __version__
from fourlane.errors import SpecError
from fourlane.spec.load import render
from fourlane.twin.assembly import exchange_settings, named_parts
from fourlane.twin.exchange.filling import exchange_tables
from fourlane.twin.exchange.lanes import lanes_case
from fourlane.twin.fabric.parallel import available_processors
from fourlane.twin.sweep.points import FIGURES, files_of, points_of
from fourlane.twin.sweep.pools import Here, OverProcesses, OverRay
from fourlane.twin.sweep.rows import RowFile, SweepHead, SweepRow
from fourlane.twin.sweep.worker import Answer, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from fourlane.spec.twin import Twin
    from fourlane.twin.exchange.setting import ExchangeSetting
    from fourlane.twin.fabric.parallel import ManyProgress
    from fourlane.twin.sweep.points import SweepPoint
    from fourlane.twin.sweep.pools import Pool

__all__ = ["SweepProgress", "SweepResult", "sweep"]

ROWS = "sweep.jsonl"


class SweepProgress(NamedTuple):
    """How far a sweep is: `done` of `total` points are known, `resumed` of them from before; `what` is being done."""

    done: int
    total: int
    share: float
    elapsed_s: float
    eta_s: float | None
    resumed: int
    what: str


@dataclass(frozen=True)
class SweepResult:
    """All points of a sweep, in the order of their values.

    Args:
        name: of the twin.
        vary: values by field.
        rows: what came of each point.
        resumed: how many were known from before.
        seconds: the others took together with all else.
    """

    name: str
    vary: dict[str, list[str]]
    rows: tuple[SweepRow, ...]
    resumed: int
    seconds: float

    @property
    def failed(self) -> int:
        """Return how many points have an error instead of figures."""
        return sum(bool(row.error) for row in self.rows)

    def best(self, figure: str) -> SweepRow | None:
        """Return the point that is best by a figure, of those that meet the SLO if any does; None if none has it.

        Raises:
            SpecError: there is no such figure.
        """
        if figure not in FIGURES:
            raise SpecError(f'sweep: expected one of the figures {", ".join(FIGURES)}, got "{figure}"')
        known = [row for row in self.rows if row.figures.get(figure) is not None]
        meeting = [row for row in known if row.figures.get("slo_met")] or known
        sign = -1.0 if FIGURES[figure].less_is_better else 1.0
        return max(meeting, key=lambda row: sign * row.figures[figure], default=None)

    def summary(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        rows = [msgspec.to_builtins(row) for row in self.rows]
        return {"name": self.name, "vary": self.vary, "resumed": self.resumed, "seconds": self.seconds, "points": rows}


def sweep(
    twin: Twin,
    vary: Mapping[str, Sequence[str]],
    folder: Path | None = None,
    *,
    requests: bool = False,
    processes: int | None = None,
    ray: str | None = None,
    progress: Callable[[SweepProgress], object] | None = None,
) -> SweepResult:
    """Work out a service for every combination of values of some of its fields.

    Args:
        twin: the service with all other fields.
        vary: values by field, as `--set` takes them.
        folder: where each point is written down as it comes (`sweep.jsonl`), and gone on from; None: nowhere.
        requests: simulate requests one by one; otherwise the steady state in closed form.
        processes: at once on this machine; None: as many as there are processors.
        ray: the address of a Ray cluster to run on instead ("auto": the one there is, else one on this machine).
        progress: called some times a second.

    Raises:
        SpecError: fields or values are wrong, or the folder holds another sweep.
        EnvironmentMissing: Ray is not installed, or does not answer.
        WorkerDied: a process died; what came before is written down.
    """
    began = time.perf_counter()
    points = points_of(twin, vary)
    if not requests and any(point.twin is not None and point.twin.faults for point in points):
        raise SpecError(
            "sweep: expected no faults, which a steady state does not have; leave them out, or add --requests"
        )
    book = _Book(points, _file(twin, vary, folder, requests=requests), progress)
    try:
        todo = book.begin()
        pool = _pool(len(todo), processes, ray)
        if isinstance(pool, OverProcesses):
            _fill_tables([points[place] for place in todo], book, processes)
        book.start(pool.name)
        tasks = [_task(place, points[place], requests=requests) for place in todo]
        for text in pool.run(tasks):
            book.take(text)
    finally:
        book.close()
    given = {path: list(values) for path, values in vary.items()}
    rows = tuple(book.rows[place] for place in range(len(points)))
    return SweepResult(twin.name, given, rows, book.resumed, time.perf_counter() - began)


def _file(twin: Twin, vary: Mapping[str, Sequence[str]], folder: Path | None, *, requests: bool) -> RowFile | None:
    if folder is None:
        return None
    head = SweepHead(
        version=__version__,
        twin=render(twin),
        files=files_of(twin),
        vary={path: list(values) for path, values in vary.items()},
        requests=requests,
    )
    return RowFile(folder / ROWS, head)


def _pool(tasks: int, processes: int | None, ray: str | None) -> Pool:
    if processes is not None and processes < 1:
        raise SpecError(f"processes: expected at least 1, got {processes}")
    if ray is not None:
        return OverRay(ray)
    at_once = min(processes or available_processors(), tasks)
    return OverProcesses(at_once) if at_once > 1 else Here()


def _fill_tables(points: Sequence[SweepPoint], book: _Book, processes: int | None) -> None:
    """Run the packets of exchange tables that are missing, each once, before processes would do so several times."""

    def tell(now: ManyProgress) -> None:
        book.what = f"exchange tables first: {now.done} of {now.total} packet runs"
        book.tell()

    settings: list[ExchangeSetting] = []
    for point in points:
        assert point.twin is not None
        try:
            architecture, cluster, _ = named_parts(point.twin)
            found = exchange_settings(point.twin, architecture, cluster, lanes_case(point.twin.lanes, cluster))
        except SpecError:
            continue  # the point itself will say so
        settings += [setting for setting in found.values() if setting not in settings]
    exchange_tables(settings, progress=tell, processes=processes)


def _task(place: int, point: SweepPoint, *, requests: bool) -> str:
    assert point.twin is not None
    return msgspec.json.encode(Task(point=place, twin=render(point.twin), requests=requests)).decode()


class _Book:
    """What is known of each point."""

    def __init__(
        self, points: Sequence[SweepPoint], file: RowFile | None, progress: Callable[[SweepProgress], object] | None
    ) -> None:
        self.rows: dict[int, SweepRow] = {} if file is None else dict(file.rows)
        self.resumed = len(self.rows)
        self.what = ""
        self._points, self._file, self._progress = points, file, progress
        self._began = self._started = self._told = time.perf_counter()
        self._known = self.resumed

    def begin(self) -> list[int]:
        """Write down points whose values make no twin; return those to work out."""
        for place, point in enumerate(self._points):
            if point.twin is None and place not in self.rows:
                self._add(SweepRow(point=place, values=point.values, error=point.error))
        return [place for place in range(len(self._points)) if place not in self.rows]

    def start(self, what: str) -> None:
        """Note that points are being worked out from now on."""
        self.what = what
        self._known, self._started = len(self.rows), time.perf_counter()
        self.tell(at_once=True)

    def take(self, text: str) -> None:
        """Write an answer down; "" is none."""
        if text:
            found = msgspec.json.decode(text, type=Answer)
            values = self._points[found.point].values
            self._add(SweepRow(values=values, **msgspec.structs.asdict(found)))
        self.tell(at_once=bool(text))

    def tell(self, *, at_once: bool = False) -> None:
        """Tell how far it is, if it is time."""
        now = time.perf_counter()
        if self._progress is None or (now - self._told < 0.2 and not at_once):
            return
        self._told = now
        done, total, fresh = len(self.rows), len(self._points), len(self.rows) - self._known
        eta = (now - self._started) / fresh * (total - done) if fresh else None
        self._progress(SweepProgress(done, total, done / total, now - self._began, eta, self.resumed, self.what))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _add(self, row: SweepRow) -> None:
        self.rows[row.point] = row
        if self._file is not None:
            self._file.add(row)
