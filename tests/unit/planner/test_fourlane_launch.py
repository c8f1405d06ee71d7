"""Launch files of fourlane's own engine: what they hold, `fourlane serve` and `fourlane worker` take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from launches import option, rendered, said, twin, written

from fourlane.cli.worker import worker_config
from fourlane.errors import SpecError
from fourlane.lanes.plan import load_plan
from fourlane.spec.load import load_deployment
from fourlane.spec.twin import Assumptions, Twin, TwinPool

if TYPE_CHECKING:
    from pathlib import Path

ADDRESSES = {"EXPERT_ADDRESS": "10.1.0.7", "KV_ADDRESS": "10.2.0.7"}


def qwen() -> Twin:
    return twin(
        "qwen3-235b-a22b",
        prefill=TwinPool(units=2, ranks=16, redundant_experts=16, overlap="always"),
        decode=TwinPool(units=1, ranks=32, max_running=64, redundant_experts=32, overlap="never"),
    )


def test_every_rank_of_every_server_is_one_the_deployment_knows(tmp_path: Path) -> None:
    folder = written(rendered(qwen(), "fourlane", model="bundled"), tmp_path)  # whose config there is to read
    deployment = load_deployment(folder / "deployment.toml")
    assert deployment.prefill is not None
    assert (deployment.prefill.ranks, deployment.prefill.expert_parallel) == (32, 16)
    seen = set()
    for server in range(8):
        (words,) = said(folder, "start.sh", str(server), **ADDRESSES)
        assert words[0] == "torchrun"
        role, first = option(words, "--role"), int(option(words, "--node-rank")) * 8
        for local in range(8):
            launch = {
                "rank": first + local,
                "world_size": int(option(words, "--nnodes")) * 8,
                "local_rank": local,
                "group": int(option(words, "--group")),
                "master_addr": option(words, "--master-addr"),
                "master_port": int(option(words, "--master-port")),
            }
            sets = tuple(words[i + 1] for i, word in enumerate(words) if word == "--set")
            config = worker_config(
                folder / "deployment.toml",
                role=role,
                gateway=option(words, "--gateway"),
                secret_file=folder / option(words, "--secret-file"),
                overrides=sets,
                launch=launch,
            )
            assert config.device == f"cuda:{local}"
            seen.add(config.name)
    assert len(seen) == 64


def test_pools_that_differ_say_so_on_the_command_line(tmp_path: Path) -> None:
    folder = written(rendered(qwen(), "fourlane"), tmp_path)
    (prefill,), (decode,) = said(folder, "start.sh", "0", **ADDRESSES), said(folder, "start.sh", "5", **ADDRESSES)
    assert "balance.redundant_experts=32" in decode
    assert "overlap.mode=never" in decode
    assert not [word for word in prefill if word.startswith(("balance.", "overlap."))]
    deployment = load_deployment(folder / "deployment.toml")
    assert deployment.balance is not None
    assert deployment.balance.redundant_experts == 16
    assert deployment.overlap.mode == "always"


def test_the_deployment_names_the_lane_plan_beside_it(tmp_path: Path) -> None:
    folder = written(rendered(qwen(), "fourlane"), tmp_path)
    deployment = load_deployment(folder / "deployment.toml")
    assert deployment.lanes is not None
    assert load_plan(deployment.lanes).classes
    assert deployment.model.path == "/models/Qwen3-235B-A22B"  # a folder: it fetches nothing
    assert said(folder, "start-router.sh") == [
        ["fourlane", "serve", "deployment.toml", "--secret-file", "fourlane.secret"]
    ]


def test_the_bundled_model_is_launched_on_hosts_without_gpus(tmp_path: Path) -> None:
    pool = TwinPool(units=1, ranks=1, chunk_tokens=256)
    folder = written(rendered(twin("bundled", "lab", prefill=pool, decode=pool), "fourlane"), tmp_path)
    deployment = load_deployment(folder / "deployment.toml")
    assert deployment.model.path == "bundled"
    assert deployment.decode is not None
    assert deployment.decode.device == "cpu"


def test_models_and_options_the_engine_lacks_are_refused_all_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        rendered(twin(assumptions=Assumptions(mtp_tokens=1)), "fourlane")
    assert [fault.partition(":")[0] for fault in caught.value.faults] == ["model", "assumptions.mtp_tokens"]
