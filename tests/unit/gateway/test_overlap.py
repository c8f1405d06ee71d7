"""What the service tells of steps in one stream and in two."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import httpx
from prometheus_client.parser import text_string_to_metric_families

from fourlane.engine.messages import OverlapStats

if TYPE_CHECKING:
    from fake_service import FakeService


def metrics(http: httpx.Client) -> dict[tuple[str, ...], float]:
    families = text_string_to_metric_families(http.get("/metrics").text)
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith("fourlane_overlap")
    }


def test_metrics_and_health_tell_how_steps_ran_why_and_what_it_was_worth(service: FakeService) -> None:
    told = OverlapStats(
        mode="dual", why="measured", steps={"single": 30, "dual": 70}, trial_steps=3, communication_s=2.0,
        hidden_s=1.5, predicted_gain=1.41, measured_gain=1.3333,
    )  # fmt: skip
    with httpx.Client(base_url=service.url) as http:
        assert http.get("/health").json()["pools"]["decode"]["overlap"] == []
        service.call(lambda: service.ranks.stats("decode/1", overlap=told))
        service.call(lambda: service.ranks.stats("prefill/0"))
        time.sleep(0.02)
        found, pools = metrics(http), http.get("/health").json()["pools"]
        service.call(lambda: service.ranks.kill("decode/1"))
        service.call(lambda: service.ranks.revive("decode/1"))
        service.call(lambda: service.ranks.stats("decode/1", overlap=told))
        time.sleep(0.02)
        again = metrics(http)
    assert pools["decode"]["overlap"] == [
        {"mode": "dual", "why": "measured", "dual_share": 0.7, "predicted_gain": 1.41, "measured_gain": 1.333}
    ]
    (prefill,) = pools["prefill"]["overlap"]
    assert (prefill["mode"], prefill["why"], prefill["predicted_gain"]) == ("single", "unmeasured", None)
    assert found["fourlane_overlap_decision", "dual", "decode/1", "measured"] == 1
    assert found["fourlane_overlap_predicted_gain", "decode/1"] == 1.41
    assert found["fourlane_overlap_measured_gain", "decode/1"] == 1.3333
    assert ("fourlane_overlap_predicted_gain", "prefill/0") not in found
    totals = {
        ("steps_total", "single", "decode/1"): 30,
        ("steps_total", "dual", "decode/1"): 70,
        ("trial_steps_total", "decode/1"): 3,
        ("communication_seconds_total", "decode/1"): 2.0,
        ("hidden_seconds_total", "decode/1"): 1.5,
    }
    for (name, *labels), total in totals.items():
        assert found[f"fourlane_overlap_{name}", *labels] == total
        assert again[f"fourlane_overlap_{name}", *labels] == 2 * total, "a rank's totals go on with its next process"
