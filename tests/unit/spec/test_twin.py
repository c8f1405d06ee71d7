"""Twin files: the catalog's, files that a twin names, overrides, and every fault at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fourlane.errors import SpecError
from fourlane.spec.load import load_cluster, load_twin, render, twins
from fourlane.units import Duration

if TYPE_CHECKING:
    from pathlib import Path

SMALL = """
model = "deepseek-v3"
cluster = "h800-ft"
[prefill]
[decode]
[workload]
rate = 1.0
"""


@pytest.mark.parametrize("name", twins())
def test_a_twin_of_the_catalog_fits_its_cluster_and_reads_back(name: str, tmp_path: Path) -> None:
    twin = load_twin(name)
    cluster = load_cluster(twin.cluster)
    assert 0 < twin.gpus <= cluster.servers * cluster.gpus_per_server
    file = tmp_path / "again.toml"
    file.write_text(render(twin))
    assert load_twin(file) == twin


def test_the_twin_of_the_whole_cluster_uses_every_gpu() -> None:
    assert load_twin("h800-10k").gpus == 10_240


def test_files_that_a_twin_names_are_found_beside_it_and_those_of_overrides_in_the_working_folder(
    tmp_path: Path,
) -> None:
    (tmp_path / "folder" / "model").mkdir(parents=True)
    named = '[workload]\ntrace = "calls.csv"\n[lanes]\nplan = "lanes.toml"\n[experts]\npopularity = "loads.npz"\n'
    text = SMALL.replace('"deepseek-v3"', '"folder/model"').replace('"h800-ft"', '"mine.toml"')
    file = tmp_path / "twin.toml"
    file.write_text(text.replace("[workload]\nrate = 1.0\n", named))
    twin = load_twin(file, overrides=["hardware=profile.toml"])
    assert twin.model == str(tmp_path / "folder" / "model")
    assert twin.cluster == str(tmp_path / "mine.toml")
    assert twin.lanes.plan == str(tmp_path / "lanes.toml")
    assert twin.experts.popularity == str(tmp_path / "loads.npz")
    assert twin.workload.trace == str(tmp_path / "calls.csv")
    assert twin.hardware == "profile.toml"


def test_names_of_the_catalog_and_of_drawn_loads_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "h800-ft").mkdir()
    file = tmp_path / "twin.toml"
    file.write_text(SMALL + '[experts]\npopularity = "zipf:1.2"\n')
    twin = load_twin(file)
    assert (twin.model, twin.cluster, twin.experts.popularity) == ("deepseek-v3", "h800-ft", "zipf:1.2")


def test_an_override_changes_a_field_of_a_twin_of_the_catalog() -> None:
    assert load_twin("deepseek-512", overrides=["slo.tpot=20ms"]).slo.tpot == Duration.parse("20ms")


def test_every_fault_of_a_twin_is_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "twin.toml"
    file.write_text(SMALL.replace("rate = 1.0", "rates = 1.0") + "[slo]\nttft = 2\n")
    with pytest.raises(SpecError) as caught:
        load_twin(file, overrides=["lanes.routing=flood"])
    text = "\n".join(caught.value.faults)
    assert 'twin.toml: workload.rates: unknown key (did you mean "rate"?)' in text
    assert 'twin.toml: slo.ttft: expected a duration such as "' in text
    assert '--set: lanes.routing: expected "adaptive" or "ecmp" or "spray", got "flood"' in text


def test_an_unknown_name_is_answered_with_the_catalog_and_the_nearest() -> None:
    with pytest.raises(SpecError, match=r"found neither \(did you mean \"deepseek-h800\"\?\)"):
        load_twin("deepseek-h80")
