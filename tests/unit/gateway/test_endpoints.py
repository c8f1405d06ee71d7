"""Health, metrics, figures, the page, the server."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import httpx
import pytest
from fake_ranks import FakeRanks
from fake_service import FakeService, build_model_folder, deployment_of
from prometheus_client.parser import text_string_to_metric_families

from fourlane.engine.durations import BOUNDS_S, DurationCounts
from fourlane.errors import CheckpointError
from fourlane.gateway.figures import Figures, percentile
from fourlane.gateway.state import ModelFacts
from fourlane.gateway.tokenizer import ModelTokenizer

if TYPE_CHECKING:
    from pathlib import Path


def test_health_is_200_only_while_every_pool_serves(model_folder: Path) -> None:
    ranks = FakeRanks()
    with FakeService(model_folder, ranks=ranks, up=False) as service, httpx.Client(base_url=service.url) as http:
        response = http.get("/health")
        assert (response.status_code, response.json()["status"]) == (503, "unavailable")
        assert response.json()["pools"]["prefill"]["problems"]["prefill/0"] == "starting: has not reported yet"
        assert http.get("/health/live").status_code == 200
        service.call(lambda: ranks.bring_up(service.router))
        assert (http.get("/health").status_code, http.get("/health").json()["status"]) == (200, "ok")
        service.call(lambda: ranks.kill("decode/1"))
        response = http.get("/health")
        assert (response.status_code, response.json()["status"]) == (200, "degraded")
        assert response.json()["pools"]["decode"]["ready"] == 1
        service.call(lambda: ranks.kill("decode/0"))
        assert http.get("/health").status_code == 503
        service.call(lambda: ranks.revive("decode/0"))
        service.call(lambda: service.router.rank_paused("prefill/0", "x"))
        service.call(lambda: service.router.rank_paused("prefill/1", "x"))
        assert http.get("/health").status_code == 503
        service.call(lambda: service.router.rank_resumed("prefill/1"))
        assert http.get("/health").status_code == 200
        service.wait(service.router.stop(0))
        assert http.get("/health").json()["status"] == "stopping"


def test_metrics_have_vllms_names_and_count_what_happened(service: FakeService) -> None:
    with httpx.Client(base_url=service.url) as http:
        model = service.state.model.name
        for _ in range(3):
            http.post("/v1/completions", json={"model": model, "prompt": [1, 2], "max_tokens": 5}).raise_for_status()
        http.post("/v1/completions", json={"model": model, "prompt": []})
        waits = DurationCounts()
        for seconds in (0.00005, 0.004, 0.004, 60.0):
            waits.add(seconds)
        known = {"step_exchange_times": waits.counts}
        service.call(lambda: [service.ranks.stats(name, **known) for name in service.router.ranks])
        time.sleep(0.05)
        text = http.get("/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    value = {(s.name, *sorted(s.labels.items())): s.value for family in families.values() for s in family.samples}

    def of(name: str, **labels: str) -> float:
        return value[(name, *sorted(labels.items()))]

    assert of("vllm:request_success_total", model_name=model, finished_reason="length") == 3
    assert of("vllm:prompt_tokens_total", model_name=model) == 6
    assert of("vllm:generation_tokens_total", model_name=model) == 15
    assert of("vllm:time_to_first_token_seconds_count", model_name=model) == 3
    assert of("vllm:inter_token_latency_seconds_count", model_name=model) == 12
    assert of("vllm:time_per_output_token_seconds_count", model_name=model) == 3
    assert of("vllm:e2e_request_latency_seconds_count", model_name=model) == 3
    assert of("vllm:num_requests_running", model_name=model) == 0
    assert of("vllm:num_requests_waiting", model_name=model) == 0
    assert of("vllm:kv_cache_usage_perc", model_name=model, engine="decode/0") == 0.25
    assert of("vllm:prefix_cache_hits_total", model_name=model, engine="prefill/1") == 40
    assert of("fourlane_lane_bytes_total", rank="prefill/0", lane="expert") == 1000
    assert of("fourlane_expert_balance_max_over_mean", pool="decode") == 1.5
    assert of("fourlane_kv_transfers_total") == 3
    assert of("fourlane_kv_transfer_hidden_seconds_total") == pytest.approx(0.054)
    assert of("fourlane_request_errors_total", status="400") == 1
    assert of("fourlane_rank_up", rank="decode/1") == 1
    steps = "fourlane_step_exchange_seconds"
    assert of(f"{steps}_bucket", pool="decode", le=str(BOUNDS_S[0])) == 2  # of two ranks, one each
    assert of(f"{steps}_bucket", pool="decode", le=str(BOUNDS_S[-1])) == 6
    assert of(f"{steps}_count", pool="decode") == 8
    assert of(f"{steps}_sum", pool="decode") == 0.5


def test_stats_hold_what_the_page_shows(service: FakeService) -> None:
    with httpx.Client(base_url=service.url) as http:
        model = service.state.model.name
        http.post("/v1/completions", json={"model": model, "prompt": "x"}).raise_for_status()
        service.call(lambda: [service.ranks.stats(name) for name in service.router.ranks])
        time.sleep(0.05)
        stats = http.get("/stats").json()
    assert [pool["name"] for pool in stats["pools"]] == ["prefill", "decode"]
    pool = stats["pools"][1]
    assert pool["experts"] == [[2 * n for n in range(8)], [2 * n for n in range(8, 16)]]
    assert (pool["balance"], pool["ranks"][0]["state"], pool["ranks"][0]["kv_use"]) == (1.5, "ready", 0.25)
    assert stats["lanes"] == {"expert": 4000, "kv": 2000}
    assert stats["first_token_s"][0] > 0
    assert stats["tokens"] == 16
    assert 0 <= stats["uptime_s"] < 60


def test_the_page_needs_nothing_from_elsewhere(service: FakeService) -> None:
    with httpx.Client(base_url=service.url) as http:
        page = http.get("/")
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        for name in re.findall(r'(?:src|href)="([^"]+)"', page.text):
            if not name.startswith("data:"):
                found = http.get(f"/{name}")
                assert found.status_code == 200
                assert len(found.content) > 100
                assert "://" not in found.text.replace("http://www.w3.org/2000/svg", "")
        script = http.get("/page/page.js").text
        ids = set(re.findall(r'id="([^"]+)"', page.text))
        assert set(re.findall(r'\bat\("([^"]+)"\)', script)) <= ids


def test_answers_do_not_wait_for_acknowledgements(service: FakeService) -> None:
    with socket.create_connection(("127.0.0.1", service.port)):
        assert service.listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_importing_the_gateway_loads_no_torch_and_its_package_loads_nothing() -> None:
    code = (
        "import sys, fourlane.gateway; assert 'starlette' not in sys.modules; "
        "fourlane.gateway.create_app; assert 'starlette' in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_an_unknown_name_of_the_package_is_told() -> None:
    import fourlane.gateway

    with pytest.raises(AttributeError, match="it has EmbeddedServer"):
        fourlane.gateway.nothing  # noqa: B018


@pytest.mark.parametrize("found", ["{}", "[1]", '{"vocab_size": 0}', '{"vocab_size": "many"}', "nonsense"])
def test_a_config_without_the_facts_is_refused(tmp_path: Path, found: str) -> None:
    (tmp_path / "config.json").write_text(found)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        ModelFacts.read(tmp_path, deployment_of())


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not found"):
        ModelTokenizer.read(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be used"):
        ModelTokenizer.read(tmp_path)


def test_a_broken_chat_template_is_refused_at_start(tmp_path: Path) -> None:
    build_model_folder(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(CheckpointError, match="no valid Jinja"):
        ModelTokenizer.read(tmp_path)


def test_percentiles_are_of_the_nearest_rank() -> None:
    assert percentile([], 50) is None
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile([float(n) for n in range(1, 101)], 99) == 99.0
    assert percentile([5.0], 99) == 5.0


def test_tokens_are_counted_second_by_second() -> None:
    figures = Figures()
    for now in (100.1, 100.9, 101.5, 103.0):
        figures.token(now)
    assert figures.tokens_per_second(104.2)[-4:] == [2, 1, 0, 1]
    assert sum(figures.tokens_per_second(200.0)) == 0


def test_the_hint_to_come_back_follows_the_rate_of_ends() -> None:
    figures = Figures()
    assert figures.retry_after(100, 5.0) == 1
    for second in range(11):
        figures.ended(float(second))
    assert figures.retry_after(40, 10.0) == 20
    assert figures.retry_after(1000, 10.0) == 60
