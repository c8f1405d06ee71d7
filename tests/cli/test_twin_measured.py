"""The twin of a deployment from the command line: calibrated, run, and told what is wrong."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from measured_profiles import two_cores

from fourlane.cli import main
from fourlane.spec.hardware_profile import load_profile
from fourlane.spec.writing import render

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result


def fourlane(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["twin", *arguments])


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "profile.toml"
    path.write_text(render(two_cores()))
    return path


def test_a_deployment_is_run_on_a_profile_under_a_load_of_ones_choice(profile: Path) -> None:
    load = ("--set", "workload.concurrency=2", "--set", "workload.requests=8", "--set", 'workload.output_len="16"')
    done = fourlane("run", "--deployment", "two_by_two", "--hardware", str(profile), *load, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert found["requests"] == found["answered"] == 8
    assert found["tpot_s"]["mean"] > 3e-3


def test_the_sources_say_where_it_was_measured(profile: Path) -> None:
    done = fourlane("run", "--deployment", "two_by_two", "--hardware", str(profile), "--set", "workload.requests=4")
    assert done.exit_code == 0, done.output
    assert "measured on a test" in done.output


def test_a_deployment_without_a_profile_is_refused() -> None:
    done = fourlane("run", "--deployment", "two_by_two")
    assert done.exit_code == 2
    assert "fourlane twin calibrate" in done.output


def test_a_deployment_and_a_twin_at_once_are_refused(profile: Path) -> None:
    done = fourlane("run", "deepseek-512", "--deployment", "two_by_two", "--hardware", str(profile))
    assert done.exit_code == 2
    assert "got both" in done.output


def test_calibrating_what_cannot_be_measured_says_why(tmp_path: Path) -> None:
    unlike = ("--set", "prefill.ranks=2", "--set", "decode.ranks=4", "--set", "decode.expert_parallel=2")
    done = fourlane("calibrate", *unlike, "-o", str(tmp_path / "profile.toml"))
    assert done.exit_code == 2
    assert "decode.expert_parallel: expected 4, one group a pool, got 2" in done.output
    assert "decode.ranks: expected 2 as prefill.ranks is, got 4" in done.output


@pytest.mark.soak
@pytest.mark.distributed
@pytest.mark.timeout(600)
def test_a_calibrated_machine_has_a_twin_that_is_about_as_quick(tmp_path: Path) -> None:
    path = tmp_path / "profile.toml"
    done = fourlane("calibrate", "-o", str(path))
    assert done.exit_code == 0, done.output
    measured = load_profile(path)
    assert measured.crowding is not None
    assert min(measured.decode.parts["attention 0"].seconds) > 0
    run = ("run", "--deployment", "two_by_two", "--hardware", str(path), "--json")
    simulated = json.loads(fourlane(*run, "--set", "workload.concurrency=1", "--set", "workload.requests=8").output)
    figures = tmp_path / "load.json"
    load = ("--set", "prefill.ranks=2", "--set", "decode.ranks=2", "--concurrency", "1", "--requests", "8")
    served = CliRunner().invoke(main, ["bench", "serve", *load, "--json", str(figures)])
    assert served.exit_code == 0, served.output
    live = json.loads(figures.read_text())["summary"]
    for figure in ("ttft_s", "tpot_s"):  # tolerant: others may use this machine meanwhile
        assert 0.4 < simulated[figure]["p50"] / live[figure]["p50"] < 2.5, figure
