"""What DeepEP is refused for, and that the stand-in has the recorded signatures."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

import deepep_double  # noqa: E402 - after the skip

from fourlane.cli.doctor_checks import check_all  # noqa: E402
from fourlane.engine.exchange import installed  # noqa: E402
from fourlane.engine.exchange.deepep import Kernels, _is_elastic, require_deepep  # noqa: E402
from fourlane.engine.exchange.deepep_buffers import ElasticBuffers, Form, LegacyBuffers  # noqa: E402
from fourlane.engine.exchange.payload import AS_IS, FLOAT8  # noqa: E402
from fourlane.engine.rank_config import rank_configs  # noqa: E402
from fourlane.errors import EnvironmentMissing, SpecError  # noqa: E402
from fourlane.spec.load import load_deployment  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

CUDA = torch.device("cuda")
ON_GPUS = ("prefill.device=cuda", "decode.device=cuda", "exchange.implementation=deepep")


def form(**changes: Any) -> Form:
    """Return what dispatches of a group of eight have in common."""
    usual = {"group": None, "ranks": 8, "slots": 64, "dim": 7168, "top_k": 8, "payload": AS_IS, "timeout_s": 30.0}
    return Form(**usual | changes)


def test_on_cpus_deepep_is_refused_with_what_to_take_instead() -> None:
    with pytest.raises(EnvironmentMissing, match=r'runs on NVIDIA GPUs, this rank computes on cpu; take "auto"'):
        require_deepep(torch.device("cpu"))


def test_ranks_that_share_gpus_are_refused() -> None:
    with pytest.raises(EnvironmentMissing, match="every rank of a group needs a GPU of its own"):
        require_deepep(CUDA, own_gpus=False)


def test_where_deepep_is_not_installed_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deep_ep", None)
    with pytest.raises(EnvironmentMissing, match="built from source"):
        require_deepep(CUDA)


def test_what_deepep_itself_lacks_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "deep_ep.py").write_text("import a_library_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "deep_ep", raising=False)
    with pytest.raises(EnvironmentMissing, match="deep_ep lacks a_library_that_is_not_there"):
        require_deepep(CUDA)
    (tmp_path / "deep_ep.py").write_text("raise ImportError('undefined symbol: ncclTeamWorld')\n")
    with pytest.raises(EnvironmentMissing, match="undefined symbol: ncclTeamWorld"):
        require_deepep(CUDA)


@pytest.mark.parametrize(
    ("classes", "wanted", "elastic"),
    [
        (("Buffer", "ElasticBuffer"), "auto", True),
        (("Buffer", "ElasticBuffer"), "v1", False),
        (("Buffer",), "auto", False),
        (("EPBuffer",), "auto", True),
        (("Buffer",), "v2", None),
        (("EPBuffer",), "v1", None),
    ],
)
def test_the_newer_interface_is_taken_unless_another_is_asked_for(
    classes: tuple[str, ...], wanted: Any, elastic: bool | None
) -> None:
    library = deepep_double.library(*classes)
    if elastic is None:
        with pytest.raises(SpecError, match=rf'exchange.deepep = "{wanted}": the installed deep_ep has n'):
            _is_elastic(library, wanted)
    else:
        assert _is_elastic(library, wanted) == elastic


def test_numbers_of_ranks_without_kernels_are_refused() -> None:
    with pytest.raises(SpecError, match="no kernels for 3 ranks"):
        LegacyBuffers(deepep_double.library("Buffer"), form(ranks=3), 128)


def test_rows_without_kernels_are_refused() -> None:
    library = deepep_double.library("Buffer", "ElasticBuffer")
    with pytest.raises(SpecError, match="a multiple of 256 elements, the model has 384"):
        ElasticBuffers(library, form(dim=384))
    with pytest.raises(SpecError, match='"float8" for rows of a multiple of 128 elements, the model has 200'):
        LegacyBuffers(library, form(dim=200, payload=FLOAT8), 128)


def test_a_call_that_the_library_does_not_know_is_an_error_of_the_stand_in() -> None:
    buffer = object.__new__(deepep_double.Buffer)
    with pytest.raises(TypeError, match=r"Buffer.dispatch of the library: .*do_expand"):
        buffer.dispatch(torch.empty(0), do_expand=True)


def test_kernels_are_those_of_v1_up_to_128_tokens_unless_told_otherwise() -> None:
    assert Kernels(ModuleType("deep_ep")).low_latency_tokens == 128


def test_a_deployment_on_gpus_tells_its_ranks_which_kernels_to_take(tmp_path: Path) -> None:
    more = ("exchange.deepep=v1", "exchange.low_latency_tokens=64", "exchange.dispatch=float8")
    for config in rank_configs(load_deployment(None, overrides=ON_GPUS + more), tmp_path):
        assert config.exchange == "deepep"
        assert (config.exchange_deepep, config.exchange_low_latency_tokens) == ("v1", 64)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("exchange.implementation=deepep",), r'"deepep" is for pools on GPUs, and \[prefill\] is on cpu'),
        (("exchange.low_latency_tokens=512",), r"low_latency_tokens: expected tokens from 0 to 511, got 512"),
        (("exchange.deepep=v3",), r"exchange.deepep"),
    ],
)
def test_what_deepep_cannot_do_is_a_fault_of_the_deployment(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load_deployment(None, overrides=overrides)


def test_doctor_tells_of_deepep_where_it_is_or_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fourlane.cli.doctor_checks.CHECKS", (_doctor_check("_gpu_kernels"),))
    monkeypatch.setattr("fourlane.cli.doctor_checks.deepep_version", lambda: None)
    assert check_all(load_deployment(None)) == []
    (wanted,) = check_all(load_deployment(None, overrides=ON_GPUS))
    assert wanted.status == "fail"
    assert installed.DEEPEP_ABSENT in wanted.mend
    monkeypatch.setattr("fourlane.cli.doctor_checks.deepep_version", lambda: "2.0.0")
    (found,) = check_all(load_deployment(None))
    assert (found.status, found.found) == ("ok", "deep_ep 2.0.0")


def _doctor_check(name: str) -> Any:
    from fourlane.cli import doctor_checks

    return getattr(doctor_checks, name)
