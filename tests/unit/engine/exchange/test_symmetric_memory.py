"""What symmetric memory is refused for, and the signatures that are used of it."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from symmetric_double import SymmetricDouble, _Mapped  # noqa: E402 - after the skip

from fourlane.engine.exchange.symmetric_memory import require_symmetric_memory  # noqa: E402
from fourlane.engine.rank_config import rank_configs  # noqa: E402
from fourlane.errors import EnvironmentMissing, SpecError  # noqa: E402
from fourlane.spec.load import load_deployment  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

RECORDED = json.loads((Path(__file__).parents[3] / "golden" / "symmetric_memory" / "torch.json").read_text())
ON_GPUS = ("prefill.device=cuda", "decode.device=cuda", "exchange.implementation=symmetric_memory")


def names(recorded: str) -> list[str]:
    """Return the parameters of a signature as pybind11 writes it, without self."""
    inside = recorded[recorded.index("(") + 1 : recorded.rindex(") ->")]
    return [name for name in re.findall(r"(?:^|, )(\w+): ", inside) if name != "self"]


def test_this_torch_has_the_recorded_signatures() -> None:
    library = pytest.importorskip("torch._C._distributed_c10d")._SymmetricMemory
    for name, recorded in RECORDED["signatures"].items():
        found = (getattr(library, name).__doc__ or "").strip().splitlines()[0]
        assert names(found) == names(recorded), name


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("set_group_info", SymmetricDouble.set_group_info),
        ("empty_strided_p2p", SymmetricDouble.empty_strided_p2p),
        ("rendezvous", SymmetricDouble.rendezvous),
        ("get_buffer", _Mapped.get_buffer),
        ("barrier", _Mapped.barrier),
    ],
)
def test_the_stand_in_takes_what_the_library_takes(name: str, method: Callable[..., Any]) -> None:
    expected = names(RECORDED["signatures"][name])
    taken = [parameter for parameter in inspect.signature(method).parameters if parameter != "self"]
    assert len(taken) == len(expected)
    if name != "set_group_info":  # which has no names, only places
        assert taken == expected


def test_without_a_gpu_of_its_own_a_rank_is_refused() -> None:
    for device, own in ((torch.device("cpu"), True), (torch.device("cuda"), False)):
        with pytest.raises(EnvironmentMissing, match="every rank of a group needs a GPU of its own"):
            require_symmetric_memory(device, own_gpus=own)


def test_gpus_that_cannot_read_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda _, other: other != 2)
    with pytest.raises(EnvironmentMissing, match="cuda:0 cannot read the memory of GPU 2"):
        require_symmetric_memory(torch.device("cuda", 0))


def test_a_deployment_on_gpus_of_one_host_may_ask_for_it(tmp_path: Path) -> None:
    configs = rank_configs(load_deployment(None, overrides=ON_GPUS), tmp_path)
    assert {config.exchange for config in configs} == {"symmetric_memory"}
    with pytest.raises(SpecError, match=r'"symmetric_memory" is for pools on GPUs, and \[prefill\] is on cpu'):
        load_deployment(None, overrides=ON_GPUS[2:])
