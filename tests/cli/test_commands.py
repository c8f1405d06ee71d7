"""`fourlane`, `fourlane serve`, `worker` and `doctor` as a person runs them: messages and exit codes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner

from fourlane.cli import main
from fourlane.cli.worker import worker_config
from fourlane.engine.model.config import resolve_model_path
from fourlane.engine.seal import Secret
from fourlane.errors import SpecError

if TYPE_CHECKING:
    from pathlib import Path

COMMANDS = ("bench", "demo", "doctor", "lanes", "serve", "worker")
FOURLANE = [sys.executable, "-m", "fourlane"]


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*FOURLANE, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )


def test_help_lists_every_command_with_a_line_and_loads_none_of_them() -> None:
    out = CliRunner().invoke(main, ["--help"])
    assert out.exit_code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in out.output
    code = "import sys; from fourlane.cli import main; main(['--help'], standalone_mode=False); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert not {"torch", "numpy", "rich", "zmq", "fourlane.cli.serve"} & set(loaded.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    out = CliRunner().invoke(main, [name, "--help"])
    assert out.exit_code == 0
    assert out.output.startswith(f"Usage: fourlane {name}")


@pytest.mark.parametrize("name", ["doctor", "lanes", "serve", "worker"])
def test_the_help_of_a_command_has_examples(name: str) -> None:
    assert f"\n    fourlane {name}" in CliRunner().invoke(main, [name, "--help"]).output


def test_a_command_that_does_not_exist_is_refused_with_code_2() -> None:
    out = CliRunner().invoke(main, ["levitate"])
    assert (out.exit_code, "levitate" in out.output) == (2, True)


def test_all_faults_of_a_deployment_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text('[gateway]\nprot = 1\n[prefill]\nkv_memory = "2 bananas"\n[decode]\nranks = "two"\n')
    out = run("serve", path, "--set", "kv_cache.block_size=17")
    assert out.returncode == 2
    assert out.stdout == ""
    assert out.stderr.startswith("error: 4 faults\n")
    for said in ("wrong.toml: gateway.prot", "decode.ranks", "prefill.kv_memory", "--set: kv_cache.block_size"):
        assert said in out.stderr
    assert "Traceback" not in out.stderr


def test_a_port_in_use_gives_code_3_and_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        out = run("serve", "--set", f"gateway.port={port}")
    assert out.returncode == 3
    assert f"port {port} at 127.0.0.1 is in use" in out.stderr
    assert "--set gateway.port=0" in out.stderr


def test_without_torch_serve_and_worker_say_how_to_get_it(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    Secret.create(secret)
    hide = "import sys, importlib.util as u; find = u.find_spec\n"
    hide += "u.find_spec = lambda name, *a: None if name == 'torch' else find(name, *a)\n"
    hide += "from fourlane.cli import main; main()"
    worker = ["worker", "--role", "decode", "--gateway", "tcp://127.0.0.1:7600", "--secret-file", str(secret)]
    for arguments in (["serve", "--set", "gateway.port=0"], worker):
        out = subprocess.run(
            [sys.executable, "-c", hide, *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        assert out.returncode == 3
        assert "'torch', which is not installed: pip install 'fourlane[engine]'" in out.stderr


def test_ctrl_c_gives_code_130_without_a_traceback() -> None:
    @click.command()
    def interrupted() -> None:
        raise KeyboardInterrupt

    group = type(main)(name="g", summaries={})
    group.get_command = lambda ctx, name: interrupted  # type: ignore[method-assign]  # noqa: ARG005
    out = CliRunner().invoke(group, ["anything"])
    assert (out.exit_code, out.output) == (130, "interrupted\n")


def test_ctrl_c_while_ranks_load_ends_serve_with_130_and_leaves_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*FOURLANE, "serve", "--set", "gateway.port=0"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "nursery: importing torch\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    deadline = time.monotonic() + 10
    while list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(tmp_path.iterdir()) == []


def test_doctor_finds_this_machine_fit_and_says_so_in_json() -> None:
    out = run("doctor", "--json", "--set", "gateway.port=0")
    findings = {finding["name"]: finding for finding in json.loads(out.stdout)}
    assert out.returncode == 0, out.stdout
    assert {"python", "torch", "model", "cores", "memory", "shared memory", "port", "open files"} <= set(findings)
    assert {finding["status"] for finding in findings.values()} <= {"ok", "warn"}
    assert findings["torch"]["found"].startswith("2.")


def test_doctor_gives_code_3_and_names_what_to_mend(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    wrong = ("--set", "kv_transfer.address=192.0.2.1", "--set", "prefill.device=cuda:7", "--set", "gateway.port=0")
    out = run("doctor", "--json", *wrong, "--set", f"model.path={tmp_path}", CUDA_VISIBLE_DEVICES="")
    failed = {finding["name"]: finding["mend"] for finding in json.loads(out.stdout) if finding["status"] == "fail"}
    assert out.returncode == 3
    assert set(failed) == {"kv_transfer.address", "CUDA", "model"}
    assert all(failed.values())


def test_doctor_prints_a_table_for_people() -> None:
    out = CliRunner().invoke(main, ["doctor", "--set", "gateway.port=0"])
    assert out.exit_code == 0
    assert out.output.splitlines()[0].split() == ["check", "result", "found"]


def test_doctor_notices_a_checkpoint_that_was_cut_short(tmp_path: Path) -> None:
    bundled = resolve_model_path("bundled")
    for file in bundled.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    out = run("doctor", "--json", "--set", "gateway.port=0", "--set", f"model.path={tmp_path}")
    model = next(finding for finding in json.loads(out.stdout) if finding["name"] == "model")
    assert model["status"] == "fail"
    assert "download it again" in model["found"]


def config_of(tmp_path: Path, *overrides: str, role: str = "decode", **launch: object):  # noqa: ANN201
    secret = tmp_path / "secret"
    return worker_config(
        None,
        role=role,
        gateway="tcp://10.0.0.1:7600",
        secret_file=secret,
        overrides=overrides,
        launch={"rank": 0, **launch},
    )


def test_a_worker_of_a_group_offers_where_to_meet_and_waits_to_be_told(tmp_path: Path) -> None:
    launch = {"rank": 1, "world_size": 2, "master_addr": "node1", "master_port": 29500}
    config = config_of(tmp_path, "decode.ranks=2", **launch)
    assert (config.name, config.group_rank, config.store, config.rendezvous) == ("decode-1", 1, "", "node1:29500")
    assert config.control_endpoint == "tcp://10.0.0.1:7600"


def test_a_launch_of_one_group_counts_its_ranks_from_the_groups_first(tmp_path: Path) -> None:
    pool = ("decode.ranks=4", "decode.expert_parallel=2")
    launch = {"world_size": 2, "master_addr": "node1", "master_port": 29500}
    assert config_of(tmp_path, *pool, rank=1, group=1, **launch).name == "decode-3"
    with pytest.raises(SpecError, match="2 expert-parallel groups of 2; launch each by itself"):
        config_of(tmp_path, *pool, rank=1, **launch)


def test_a_worker_takes_the_gpu_of_its_local_rank(tmp_path: Path) -> None:
    config = config_of(tmp_path, "decode.device=cuda", local_rank=3)
    assert config.device == "cuda:3"


@pytest.mark.parametrize(
    ("overrides", "launch", "said"),
    [
        ((), {"rank": 1}, r"RANK: expected 0 to 0 .* got 1"),
        (("decode.ranks=2",), {"rank": 0, "world_size": 3}, "WORLD_SIZE: expected 2 ranks .* got 3"),
        (("decode.ranks=2",), {"rank": 0, "world_size": 2}, "--master-addr"),
        (("decode.ranks=2",), {"rank": 0, "group": 1}, "--group: expected 0 to 0"),
    ],
)
def test_a_launch_that_does_not_fit_the_pool_is_refused(
    tmp_path: Path, overrides: tuple[str, ...], launch: dict[str, object], said: str
) -> None:
    with pytest.raises(SpecError, match=said):
        config_of(tmp_path, *overrides, **launch)


def test_a_role_the_deployment_has_not_and_a_gateway_that_is_no_address_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="has no unified pool; it has prefill, decode"):
        config_of(tmp_path, role="unified")
    with pytest.raises(SpecError, match="--gateway: expected an address"):
        worker_config(None, role="decode", gateway="10.0.0.1", secret_file=tmp_path, overrides=(), launch={"rank": 0})
