"""The search for plans: what it finds is sound, ranked, within its budget; what cannot be is told by how much."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import fourlane.spec
from fourlane.errors import SpecError
from fourlane.planner.points import points_of
from fourlane.planner.search import plan
from fourlane.report.plan_tables import verdict
from fourlane.spec.load import load_plan_spec, load_twin
from fourlane.spec.plan import PlanSpec, Search
from fourlane.spec.reading import read_struct
from fourlane.spec.twin import Experts, Slo, Twin, Workload
from fourlane.twin.assembly import assemble
from fourlane.twin.operating_point import operating_point
from fourlane.units import Duration

if TYPE_CHECKING:
    from fourlane.planner.values import PlanResult

CATALOG = Path(fourlane.spec.__file__).parent / "catalog"
NARROW = Search(
    prefill_ranks=(8,), decode_ranks=(4, 8), redundant_experts=(0,), max_running=(32, 128), overlap=("never",), points=8
)


def spec(**fields: Any) -> PlanSpec:
    """Return Qwen3-30B on a few servers, whose units stay within one: no packet need be simulated."""
    made: dict[str, Any] = {
        "model": "qwen3-30b-a3b",
        "cluster": "h800-ft",
        "gpus": 64,
        "experts": Experts(popularity="uniform", lean=0.0),
        "workload": Workload(input_len="2048", output_len="256"),
        "slo": Slo(ttft=Duration.parse("1s"), tpot=Duration.parse("30ms")),
        "search": NARROW,
    }
    return PlanSpec(**{**made, **fields})


@pytest.fixture(scope="module")
def found() -> PlanResult:
    return plan(spec(), processes=1)


def test_rows_are_ranked_by_goodput_a_gpu_and_keep_to_the_budget(found: PlanResult) -> None:
    assert found.met
    met = [row.goodput_gpu for row in found.rows if row.meets]
    assert met == sorted(met, reverse=True)
    assert all(row.gpus <= 64 for row in found.rows)
    assert found.points <= 8
    # The budget is used: one unit more would not fit beside what the best row has, or would be idle.
    assert found.rows[0].gpus > 32


def test_no_row_of_the_front_is_beaten_in_everything(found: PlanResult) -> None:
    def figures(row: Any) -> tuple[float, float, float]:
        return -row.tokens_gpu, row.point.tpot.mean, row.point.ttft.mean

    front = [row for row in found.rows if row.front]
    assert front
    for row in front:
        assert not any(
            all(a <= b for a, b in zip(figures(other), figures(row), strict=True)) and figures(other) != figures(row)
            for other in found.rows
        )


def test_a_row_read_back_from_the_plan_is_the_twin_that_was_worked_out(found: PlanResult) -> None:
    entry = found.summary()["rows"][0]
    twin, faults = read_struct(Twin, entry["twin"])
    assert not faults
    assert twin == found.rows[0].twin
    again = operating_point(assemble(twin))
    assert again.rate == pytest.approx(entry["point"]["rate"])
    assert again.goodput / twin.gpus == pytest.approx(entry["goodput_gpu"])


def test_a_rate_is_served_on_as_few_gpus_as_can(found: PlanResult) -> None:
    rate = found.rows[0].point.rate / 4
    small = plan(spec(workload=Workload(input_len="2048", output_len="256", rate=rate)), processes=1)
    assert small.met
    assert small.rows[0].point.rate == pytest.approx(rate)
    assert small.rows[0].gpus < found.rows[0].gpus / 2


def test_where_nothing_meets_the_slo_the_nearest_says_what_binds_and_what_would_be_met() -> None:
    result = plan(spec(slo=Slo(ttft=Duration.parse("1s"), tpot=Duration.parse("1ms"))), processes=1)
    assert not result.met
    assert result.rows[0].point.slo.binds == "tpot"
    assert "TPOT" in result.rows[0].point.slo.says
    assert "would be met" in result.rows[0].point.slo.says


def test_a_model_that_fits_on_no_unit_is_told_with_the_gigabytes_that_are_missing() -> None:
    small = spec(model="deepseek-v3", gpus=16, search=Search())
    with pytest.raises(SpecError, match=r"gpus: deepseek-v3 does not fit .* each rank has \d+\.\d GB too little"):
        plan(small)
    with pytest.raises(SpecError, match=r"needs 16 GPUs for a prefill unit .* got 31; .* GB too little"):
        plan(spec(model="deepseek-v3", gpus=31, search=Search()))


def test_points_over_processes_are_those_of_one(found: PlanResult) -> None:
    twins = [row.twin for row in found.rows[:3]]
    assert points_of(twins, processes=2) == [row.point for row in found.rows[:3]]


def test_a_twin_that_cannot_be_is_told_why_and_the_others_go_on(found: PlanResult) -> None:
    good = found.rows[0].twin
    bad = load_twin("deepseek-512", overrides=["prefill.ranks=8"])
    outcomes = points_of([bad, good], processes=1)
    assert "does not fit" in str(outcomes[0])
    assert outcomes[1] == found.rows[0].point


def test_a_rate_beyond_all_gpus_is_told_with_what_they_can_do() -> None:
    load = Workload(input_len="2048", output_len="256", rate=5000.0)
    result = plan(spec(gpus=16, workload=load, search=msgspec.structs.replace(NARROW, points=2)), processes=1)
    assert not result.met
    best = result.rows[0].point
    assert f"{best.rate:,.1f} of 5,000.0 requests/s" in verdict(result)
    assert best.rate < 5000


@pytest.mark.parametrize("name", sorted(file.stem for file in (CATALOG / "plans").glob("*.toml")))
def test_plans_of_the_catalog_are_sound(name: str) -> None:
    assert load_plan_spec(name).name == name


def test_faults_of_a_plan_file_are_told_all_at_once(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    text = 'model = "deepseek-v3"\ncluster = "h800-ft"\ngpus = 1\nworkload.concurrency = 4\nsearch.max_running = []\n'
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        load_plan_spec(file)
    places = [fault.split(": ")[1] for fault in caught.value.faults]
    assert places == ["gpus", "search.max_running", "workload.concurrency"]


def test_unknown_names_are_told_with_what_was_meant() -> None:
    with pytest.raises(SpecError, match="did you mean"):
        plan(spec(model="deepseek-v33"))
    with pytest.raises(SpecError, match="h80"):
        plan(spec(hardware="h80"))
    with pytest.raises(SpecError, match=r"search\.kv: expected networks of one-network \(hpn\)"):
        plan(spec(cluster="one-network", hardware="h800", search=Search(kv=("dcn",))))
