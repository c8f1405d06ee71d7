"""What a load consists of: lengths, arrivals, prompts and traces."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourlane.errors import SpecError
from fourlane.gateway.load import Arrivals, Lengths, LoadSettings, plan_requests, read_trace
from fourlane.gateway.load.workload import token_ids

if TYPE_CHECKING:
    from pathlib import Path

VOCABULARY = range(300, 4000)
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.4799600,110,27
"""
MOONCAKE = """{"timestamp": 1000, "input_length": 1500, "output_length": 50, "hash_ids": [0, 1, 2]}
{"timestamp": 1500, "input_length": 1300, "output_length": 40, "hash_ids": [0, 1, 9]}
{"timestamp": 1200, "input_length": 600, "output_length": 3, "hash_ids": [7, 8]}
"""


def test_the_same_seed_plans_the_same_load_and_another_seed_another() -> None:
    def plan(seed: int) -> list[object]:
        lengths = Lengths.parse("4..40", name="x")
        return list(
            plan_requests(
                Arrivals(rate=10.0),
                requests=20,
                input_lengths=lengths,
                output_lengths=lengths,
                vocabulary=VOCABULARY,
                seed=seed,
            )
        )

    assert plan(1) == plan(1)
    assert plan(1) != plan(2)


@given(st.integers(), st.integers(0, 200))
def test_token_ids_are_of_the_vocabulary(seed: int, length: int) -> None:
    ids = token_ids(seed, length, vocabulary=range(5, 9))
    assert len(ids) == length
    assert set(ids) <= {5, 6, 7, 8}


def test_an_azure_trace_keeps_times_and_lengths(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(AZURE)
    first, second = read_trace(path, speed=2.0).requests(vocabulary=VOCABULARY, seed=0)
    assert (first.due_s, len(first.prompt), first.max_tokens) == (0.0, 4808, 10)
    assert (second.due_s, len(second.prompt), second.max_tokens) == (pytest.approx(0.25), 110, 27)


def test_requests_of_a_mooncake_trace_share_the_prefixes_their_hash_ids_share(tmp_path: Path) -> None:
    path = tmp_path / "mooncake.jsonl"
    path.write_text(MOONCAKE)
    early, middle, late = read_trace(path).requests(vocabulary=VOCABULARY, seed=0)
    assert [early.due_s, middle.due_s, late.due_s] == pytest.approx([0.0, 0.2, 0.5])
    assert [len(request.prompt) for request in (early, middle, late)] == [1500, 600, 1300]
    assert early.prompt[:1024] == late.prompt[:1024]
    assert early.prompt[1024:1300] != late.prompt[1024:1300]
    assert middle.prompt[:512] != early.prompt[:512]


def test_scaled_traces_still_share_prefixes(tmp_path: Path) -> None:
    path = tmp_path / "mooncake.jsonl"
    path.write_text(MOONCAKE)
    early, _, late = read_trace(path, length_scale=0.1).requests(vocabulary=VOCABULARY, seed=0)
    assert (len(early.prompt), early.max_tokens) == (150, 5)
    assert early.prompt[:102] == late.prompt[:102]


def test_lengths_over_the_limit_are_cut_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "mooncake.jsonl"
    path.write_text(MOONCAKE)
    trace = read_trace(path, max_length=1000)
    lengths = [(len(request.prompt), request.max_tokens) for request in trace.requests(vocabulary=VOCABULARY, seed=0)]
    assert lengths == [(950, 50), (600, 3), (960, 40)]
    assert trace.cut() == 2


def options(**changed: object) -> dict[str, object]:
    base: dict[str, object] = {
        "deployment": None, "overrides": (), "url": "http://localhost", "model": None, "requests": None,
        "duration": None, "concurrency": None, "rate": None, "burstiness": 1.0, "trace": None, "speed": 1.0,
        "length_scale": 1.0, "max_length": None, "input_len": "8", "output_len": "4", "prompts": None,
        "token_ids": "300..400", "ignore_eos": True, "temperature": 0.0, "warmup": 2, "timeout": "5s", "seed": 0,
        "slo_ttft": None, "slo_tpot": None, "json_path": None, "plot_path": None,
    }  # fmt: skip
    return base | changed


def test_settings_report_all_faults_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        LoadSettings.read(options(timeout="5", token_ids="9..3", trace="t.csv", rate=1.0, deployment="d.toml"))
    assert [fault.split(":")[0] for fault in caught.value.faults] == [
        "--timeout", "--token-ids", "bench serve", "bench serve",
    ]  # fmt: skip


def test_the_default_is_a_closed_loop_of_sixteen() -> None:
    settings = LoadSettings.read(options())
    assert (settings.requests, settings.concurrency, settings.rate) == (64, 16, None)
    assert settings.plan().description == "64 requests, 16 at a time, 8 tokens in, 4 out"


def test_warming_up_shares_no_prompt_with_the_load() -> None:
    settings = LoadSettings.read(options(input_len="64"))
    measured = {tuple(request.prompt) for request in settings.plan().requests}
    warm = {tuple(request.prompt) for request in settings.warmup_plan().requests}
    assert len(warm) == 2
    assert not measured & warm


def test_prompts_of_a_file_are_sent_in_turn(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("In the beginning\n\nA noun is\n")
    settings = LoadSettings.read(options(prompts=path, requests=3))
    prompts = [request.prompt for request in settings.plan().requests]
    assert prompts == ["In the beginning", "A noun is", "In the beginning"]
