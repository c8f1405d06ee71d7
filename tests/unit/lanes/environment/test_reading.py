"""Environments in all their spellings."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from fourlane.errors import SpecError
from fourlane.lanes.environment.reading import known_variables, read_forced_tos, read_process

if TYPE_CHECKING:
    from pathlib import Path

WANTED = {"NCCL_IB_TC": "106", "NCCL_IB_HCA": "=mlx5_0:1,mlx5_1:1"}


@pytest.mark.parametrize(
    "text",
    [
        "export NCCL_IB_TC=106\nexport NCCL_IB_HCA='=mlx5_0:1,mlx5_1:1'\n",
        "NCCL_IB_TC=106 # collectives\nNCCL_IB_HCA==mlx5_0:1,mlx5_1:1",
        'declare -x NCCL_IB_TC="106"\ndeclare -x NCCL_IB_HCA="=mlx5_0:1,mlx5_1:1"\n',
        "# NCCL_IB_TC=4\nNCCL_IB_TC=1\n  export NCCL_IB_HCA==mlx5_0:1,mlx5_1:1 NCCL_IB_TC=106;\n",
        "env NCCL_IB_TC=106 NCCL_IB_HCA==mlx5_0:1,mlx5_1:1 python serve.py --set NCCL_IB_TC=4",
        "NCCL_IB_SL=3\nNCCL_IB_TC=106\nNCCL_IB_HCA==mlx5_0:1,mlx5_1:1\nunset NCCL_IB_SL\n",
        "echo it's fine\nNCCL_IB_TC=106\nNCCL_IB_HCA==mlx5_0:1,mlx5_1:1\n",
        "SECRET=x\0NCCL_IB_TC=106\0NCCL_IB_HCA==mlx5_0:1,mlx5_1:1\0",
    ],
)
def test_files_and_dumps_are_read_alike(text: str) -> None:
    assert known_variables(text.encode(), source="job.env") == WANTED


def test_nothing_but_known_variables_is_kept() -> None:
    text = b"HF_TOKEN=hf_secret\nNCCL_IB_TC=106\nMY_NCCL_IB_TC=4\nAWS_SECRET_ACCESS_KEY=abc\n"
    assert known_variables(text, source="job.env") == {"NCCL_IB_TC": "106"}


def test_bytes_that_are_no_text_harm_nobody() -> None:
    assert known_variables(b"\xff\xfe=1\nNCCL_IB_TC=106\n", source="x") == {"NCCL_IB_TC": "106"}


def test_a_line_no_shell_could_read_is_refused_with_its_place() -> None:
    with pytest.raises(
        SpecError, match=r"job.env:2: expected a line a shell can read, got one with no closing quotation"
    ):
        known_variables(b"A=1\nexport NCCL_IB_TC='106\n", source="job.env")


def test_the_environment_of_a_process_is_read() -> None:
    code = "import sys; print(); sys.stdout.flush(); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **WANTED},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        process.stdout.readline()
        assert read_process(process.pid) == WANTED
    finally:
        process.communicate(timeout=30)


def test_a_process_that_is_not_there_is_named() -> None:
    with pytest.raises(SpecError, match="the environment of process 4194999 cannot be read: No such file"):
        read_process(4194999)


def test_what_devices_force_is_read_from_sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for device, text in (("mlx5_0", "Global tclass=106\n"), ("mlx5_1", ""), ("mlx5_2", "tclass=8,dst_ip=1.2.3.4\n")):
        folder = tmp_path / "class/infiniband" / device / "tc/1"
        folder.mkdir(parents=True)
        (folder / "traffic_class").write_text(text)
    monkeypatch.setenv("FOURLANE_SYSFS", str(tmp_path))
    assert read_forced_tos() == {"mlx5_0": 106}
