"""`fourlane lanes lint-env` as a person runs it: tables, JSON, exit codes, and no secrets."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from fourlane.cli import main
from fourlane.lanes.default_plan import default_plan
from fourlane.lanes.render.env import render_env
from fourlane.spec.load import load_cluster, render

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result


def lint(*arguments: object, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(main, ["lanes", "lint-env", *map(str, arguments)], input=stdin)


@pytest.fixture
def as_rendered(tmp_path: Path) -> Path:
    cluster = load_cluster("h800-ft")
    files = render_env(default_plan(cluster), cluster)
    file = tmp_path / "decode.env"
    file.write_text("".join(text for path, text in files.items() if path.startswith("decode/")))
    return file


def test_what_was_rendered_is_fine(as_rendered: Path) -> None:
    out = lint(as_rendered, "--cluster", "h800-ft")
    assert out.exit_code == 0
    assert out.output.splitlines()[-1].startswith("0 errors, 0 warnings")
    assert "NCCL GIN            184    46   00   -  expert      expert      NCCL_GIN_IB_TC" in out.output


def test_what_contradicts_the_plan_gives_code_1_and_a_mend(as_rendered: Path) -> None:
    as_rendered.write_text(as_rendered.read_text() + "export NCCL_IB_TC=46\nexport HF_TOKEN=hf_secret\n")
    out = lint(as_rendered, "--cluster", "h800-ft")
    assert out.exit_code == 1
    assert "error: NCCL_IB_TC\n  does: NCCL: ToS byte 46 is DSCP 11 with ECN bits 10" in out.output
    assert "mend: export NCCL_IB_TC=106" in out.output
    assert "hf_secret" not in out.output
    assert "HF_TOKEN" not in out.output


def test_json_has_what_the_table_has(as_rendered: Path) -> None:
    out = lint(as_rendered, "--cluster", "h800-ft", "--host-tos", "mlx5_0=106", "--json")
    report = json.loads(out.output)
    assert out.exit_code == 1
    rows = {row["stream"]: row for row in report["rows"]}
    assert (rows["NCCL"]["tos"], rows["NCCL"]["wanted"], rows["UCX"]["lands_in"]) == (106, "collective", "kv")
    assert report["findings"][0]["place"] == "/sys/class/infiniband/mlx5_0/tc/1/traffic_class"


def test_standard_input_is_read_and_a_plan_is_not_needed() -> None:
    out = lint("-", stdin=b"HOME=/root\0NVSHMEM_IB_TRAFFIC_CLASS=184\0NVSHMEM_HCA_LIST=mlx5_0:1\0")
    assert out.exit_code == 1
    assert "error: NVSHMEM_HCA_LIST" in out.output
    assert "without a plan, as on RoCE" in out.output
    assert lint("-", stdin="PATH=/bin\n").output.startswith("no variable that chooses a lane is set")


def test_a_plan_of_ones_own_counts(as_rendered: Path, tmp_path: Path) -> None:
    plan = tmp_path / "lanes.toml"
    plan.write_text(render(default_plan(load_cluster("h800-ft"))).replace("dscp = 18", "dscp = 20"))
    out = lint(as_rendered, "--plan", plan, "--cluster", "h800-ft")
    assert out.exit_code == 1
    assert "UCX: ToS byte 74 is DSCP 18 with ECN bits 10: it lands in" in out.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "expected a FILE"),
        (("-", "--process", "1"), "and not both"),
        (("absent.env",), "absent.env: expected a readable file: No such file"),
        (("/",), "/: expected a readable file: Is a directory"),
        (("--process", "4194999"), "process 4194999 cannot be read"),
        (("-", "--plan", "lanes.toml"), "name it with --cluster as well"),
        (("-", "--host-tos", "106"), "expected a device and a ToS byte"),
        (("-", "--cluster", "absent"), "expected a cluster file"),
    ],
)
def test_what_cannot_be_read_gives_code_2(arguments: tuple[str, ...], said: str) -> None:
    out = lint(*arguments, stdin="")
    assert out.exit_code == 2
    assert said in out.output


def test_a_process_here_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOURLANE_SYSFS", str(tmp_path))
    folder = tmp_path / "class/infiniband/mlx5_3/tc/1"
    folder.mkdir(parents=True)
    (folder / "traffic_class").write_text("Global tclass=160\n")
    out = lint("--process", os.getpid(), "--json")
    report = json.loads(out.output)
    assert any("mlx5_3" in finding["place"] for finding in report["findings"])
