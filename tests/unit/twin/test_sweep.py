"""Sweeps: their points, where they run, how they go on, what is refused."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from fourlane.errors import EnvironmentMissing, SpecError, WorkerDied
from fourlane.spec.load import load_twin
from fourlane.twin.sweep import points_of, pools, sweep, worker
from fourlane.twin.sweep.pools import OverProcesses, OverRay

if TYPE_CHECKING:
    from pathlib import Path

    from fourlane.spec.twin import Twin

VARY = {"decode.units": ["1", "2", "3"], "lanes.routing": ["ecmp", "adaptive"]}


@pytest.fixture
def twin() -> Twin:
    return load_twin("deepseek-512")


@pytest.fixture
def worked_out(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Points are worked out by a formula; the list says which were."""
    seen: list[int] = []

    def figures(twin: Twin, *, requests: bool) -> dict[str, Any]:
        seen.append(twin.decode.units)
        if twin.decode.units == 3:
            raise SpecError("decode: three is too many")
        gain = 2.0 if twin.lanes.routing == "adaptive" else 1.0
        return {
            "gpus": twin.gpus,
            "output_tokens_s_gpu": gain * twin.decode.units,
            "tpot_mean_s": 0.1 / gain,
            "slo_met": twin.decode.units < 2,
            "requests": requests,
        }

    monkeypatch.setattr(worker, "_figures", figures)
    return seen


def test_every_combination_is_a_point_and_the_last_field_changes_fastest(twin: Twin) -> None:
    points = points_of(twin, VARY)
    assert [tuple(point.values.values()) for point in points[:3]] == [("1", "ecmp"), ("1", "adaptive"), ("2", "ecmp")]
    made = points[3].twin
    assert made is not None
    assert (made.decode.units, made.lanes.routing, made.prefill) == (2, "adaptive", twin.prefill)


def test_unknown_fields_and_values_are_refused_at_once_and_impossible_combinations_are_not(twin: Twin) -> None:
    with pytest.raises(SpecError) as caught:
        points_of(twin, {"decode.rank": ["8"], "lanes.routing": ["ecmp", "magic"]})
    assert len(caught.value.faults) == 2
    bad = points_of(twin, {"decode.max_running": ["0", "16"]})
    assert bad[0].twin is None
    assert "decode.max_running" in bad[0].error
    assert bad[1].twin is not None


@pytest.mark.parametrize(
    "vary", [{}, {"decode.units": []}, {f"decode.{name}": list("1" * 999) for name in ("units", "ranks")}]
)
def test_sweeps_over_nothing_and_over_far_too_much_are_refused(twin: Twin, vary: dict[str, list[str]]) -> None:
    with pytest.raises(SpecError, match="sweep: expected"):
        points_of(twin, vary)


def test_faults_are_refused_where_no_requests_are_simulated(twin: Twin) -> None:
    faults = ['[{at = "1s", kind = "rank", target = "decode/0"}]']
    with pytest.raises(SpecError, match="sweep: expected no faults, which a steady state does not have"):
        sweep(twin, {"faults": faults}, processes=1)


def test_points_that_fail_are_told_among_the_others(twin: Twin, worked_out: list[int]) -> None:
    result = sweep(twin, VARY, processes=1)
    assert [bool(row.error) for row in result.rows] == [False] * 4 + [True] * 2
    assert result.failed == 2
    assert result.rows[4].error == "decode: three is too many"
    assert worked_out == [1, 1, 2, 2, 3, 3]
    assert json.loads(json.dumps(result.summary()))["points"][1]["figures"]["output_tokens_s_gpu"] == 2.0


def test_the_best_point_is_one_that_meets_the_slo(twin: Twin, worked_out: list[int]) -> None:
    result = sweep(twin, VARY, processes=1)
    best = result.best("output_tokens_s_gpu")
    fastest = result.best("tpot_mean_s")
    assert best is not None
    assert fastest is not None
    assert best.values == {"decode.units": "1", "lanes.routing": "adaptive"}  # 2 units give more, and miss it
    assert fastest.figures["tpot_mean_s"] == 0.05
    with pytest.raises(SpecError, match=r'expected one of the figures .*, got "beauty"'):
        result.best("beauty")
    assert worked_out


def test_a_sweep_goes_on_where_it_was_interrupted(twin: Twin, worked_out: list[int], tmp_path: Path) -> None:
    def stop(now: Any) -> None:
        if now.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(twin, VARY, tmp_path, processes=1, progress=stop)
    assert worked_out == [1, 1, 2]
    file = tmp_path / "sweep.jsonl"
    file.write_bytes(file.read_bytes()[:-7])  # as a crash leaves it
    told: list[Any] = []
    result = sweep(twin, VARY, tmp_path, processes=1, progress=told.append)
    assert worked_out == [1, 1, 2, 2, 2, 3, 3]
    assert (result.resumed, told[0].done, told[-1].done, told[-1].total) == (2, 2, 6, 6)
    again = sweep(twin, VARY, tmp_path, processes=1)
    assert len(worked_out) == 7
    assert again.rows == result.rows


def test_another_sweep_in_the_same_folder_is_refused(twin: Twin, worked_out: list[int], tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2024-01-01 00:00:00,5,6\n")
    traced = msgspec.structs.replace(twin, workload=msgspec.structs.replace(twin.workload, rate=None, trace=str(trace)))
    sweep(traced, VARY, tmp_path, processes=1)
    known = len(worked_out)
    with pytest.raises(SpecError, match=r"sweep.jsonl: begun with other inputs \(what varies\)"):
        sweep(traced, {"decode.units": ["1"]}, tmp_path)
    with pytest.raises(SpecError, match=r"\(the twin, whether requests are simulated\)"):
        sweep(msgspec.structs.replace(traced, seed=5), VARY, tmp_path, requests=True)
    trace.write_text(trace.read_text() + "2024-01-01 00:00:01,5,6\n")
    with pytest.raises(SpecError, match=r"\(contents of files that the twin names\)"):
        sweep(traced, VARY, tmp_path)
    (tmp_path / "sweep.jsonl").write_text('{"some": "thing"}\n')
    with pytest.raises(SpecError, match="expected a sweep's rows"):
        sweep(traced, VARY, tmp_path)
    assert len(worked_out) == known


def test_processes_give_the_same_rows_as_one(twin: Twin) -> None:
    vary = {"prefill.units": ["400", "500", "600"]}  # more GPUs than there are: told by the real worker
    here, over = (sweep(twin, vary, processes=count) for count in (1, 2))
    assert [row.error for row in over.rows] == [row.error for row in here.rows]
    assert "expected at most the 512 GPUs of h800-ft, got 13088" in over.rows[0].error


def test_a_process_that_dies_is_told_with_what_it_was_at(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "_SERVE", "import os, sys; sys.stdin.readline(); os._exit(9)")
    with pytest.raises(WorkerDied, match=r"a process of the sweep died: exit status 9; it was at .*point"):
        list(OverProcesses(2).run(['{"point": 1}', '{"point": 2}']))
    assert twin


class StandIn:
    """What of Ray a sweep uses, in this process."""

    exceptions = SimpleNamespace(RayError=RuntimeError)

    def __init__(self) -> None:
        self.calls: list[str] = []

    def is_initialized(self) -> bool:
        return False

    def init(self, address: str | None = None, **_: Any) -> None:
        if address == "10.0.0.1:6379":
            raise ConnectionError("nobody there")
        self.calls.append(f"init {address}")

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def nodes(self) -> list[dict[str, bool]]:
        return [{"Alive": True}, {"Alive": True}, {"Alive": False}]

    def remote(self, **options: Any) -> Any:
        assert options["max_retries"] == 3
        return lambda function: SimpleNamespace(remote=lambda task: (function, task))

    def wait(self, references: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        assert len(references) <= 4
        return references[-1:], references[:-1]

    def get(self, reference: Any) -> str:
        function, task = reference
        return function(task)

    def cancel(self, *_: Any, **__: Any) -> None:
        self.calls.append("cancel")

    def shutdown(self) -> None:
        self.calls.append("shutdown")


def test_ray_gets_every_task_and_is_left_when_all_is_done(twin: Twin, worked_out: list[int]) -> None:
    ray = StandIn()
    pool = OverRay(ray=ray)
    assert pool.name == "Ray: 2 processors of 2 machines"
    tasks = [json.dumps({"point": place, "twin": "", "requests": False}) for place in range(9)]
    answers = [json.loads(text) for text in pool.run(tasks)]
    assert sorted(each["point"] for each in answers) == list(range(9))
    assert ray.calls == ["init None", "shutdown"]
    assert not worked_out
    assert twin
    with pytest.raises(EnvironmentMissing, match=r"no cluster answers at 10.0.0.1:6379: nobody there"):
        OverRay("10.0.0.1:6379", ray=ray)


def test_without_ray_it_is_said_how_to_get_it(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EnvironmentMissing, match=r'pip install "fourlane\[ray\]"') as caught:
        sweep(twin, VARY, ray="auto")
    assert caught.value.exit_code == 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_itself_gives_the_same_rows_as_one_process(twin: Twin) -> None:
    pytest.importorskip("ray", reason='Ray is not installed: pip install "fourlane[ray]"')
    vary = {"prefill.units": ["400", "500", "600"]}
    here, over = sweep(twin, vary, processes=1), sweep(twin, vary, ray="auto")
    assert [row.error for row in over.rows] == [row.error for row in here.rows]
