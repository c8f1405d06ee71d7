"""The adapters of DeepEP over the library itself, on two GPUs, and its signatures beside those recorded."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from deepep_double import recorded, signature  # noqa: E402 - after the skip

BODIES = Path(__file__).parents[1] / "distributed" / "deepep_bodies.py"
INSTALLED = importlib.util.find_spec("deep_ep") is not None
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not INSTALLED, reason="DeepEP is not installed here")]
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two GPUs are needed, one a rank")
CASES = ["ragged_batches", "any_placement", "one_hot_expert", "no_tokens", "two_micro_batches"]


@pytest.mark.parametrize("name", ["buffer_v1", "elastic_v2", "ep_v2"])
def test_parameters_we_pass_are_those_of_the_installed_library(name: str) -> None:
    library = importlib.import_module("deep_ep")
    for cls, methods in recorded(name)["classes"].items():
        if cls == "Config" or not hasattr(library, cls):
            continue  # pybind11's signatures cannot be read; of V2 there is one class or the other
        for method, parameters in methods.items():
            found = inspect.signature(getattr(getattr(library, cls), method)).parameters
            missing = [name for name in signature(parameters).parameters if name not in found]
            assert not missing, f"{cls}.{method} no longer has {missing}"


@two_gpus
@pytest.mark.parametrize("kind", ["v1+gpu", "low_latency+gpu", "v2+gpu", "v1+gpu+float8", "v2+gpu+float8"])
@pytest.mark.parametrize("case", CASES)
def test_on_gpus_the_adapters_do_what_they_do_over_the_stand_in(case: str, kind: str, tmp_path: Path) -> None:
    library = importlib.import_module("deep_ep")
    if "v2" in kind and not (hasattr(library, "ElasticBuffer") or hasattr(library, "EPBuffer")):
        pytest.skip("the installed deep_ep has no V2")
    with subprocess.Popen(
        [sys.executable, str(BODIES)],
        env={**os.environ, "PYTHONPATH": str(BODIES.parents[1] / "support")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            process.stdin.write(f"{case} 2 {tmp_path} {kind}\n")
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], 100)
            assert ready, "no answer for 100 s"
            assert process.stdout.readline() == "0\n", (tmp_path / "output").read_text()
        finally:
            process.kill()
