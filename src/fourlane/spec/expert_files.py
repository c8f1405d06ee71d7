"""Files of expert loads, placements and a batch's counts.

Formats are told apart by what a file holds, not by its name. Loads, [windows, layers, experts] tokens by phase:

- ours: JSON `{"format": "fourlane.expert_load", "version": 1, "source": "...", "phases": {"decode": {"window_steps": n,
  "load_WLE": [[[...]]]}}}`; as npz or safetensors the same, named `decode/load_WLE`;
- SGLang's `logical_count`, [layers, experts] or [passes, layers, experts] (the `.pt` files that its recorder
  writes need torch: `fourlane.integrations.sglang_files`);
- vLLM's: a `load_history` of `logical_expert_load`, as traces of it are published; or the arrays its balancer
  keeps, `expert_load_window` [steps, layers, physical experts] and `physical_to_logical_map` (vLLM itself writes no
  file: whoever dumps them does);
- plain numbers, [layers, experts] or [windows, layers, experts], under any one name or none.

A file's faults are told all at once, each with its place. Nothing here knows of policies; NumPy is imported late.

Source: sglang 0.5.23, srt/eplb/expert_location.py; vllm 0.32, distributed/eplb/eplb_state.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fourlane.errors import SpecError
from fourlane.spec.expert_arrays import checked_array, checked_count
from fourlane.spec.expert_containers import read_container, write_container

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

__all__ = [
    "LoadArrays",
    "Loads",
    "PlacementArrays",
    "load_document",
    "read_counts",
    "read_loads",
    "read_placement",
    "write_counts",
    "write_loads",
    "write_placement",
]

LOAD_FORMAT, PLACEMENT_FORMAT, COUNTS_FORMAT = "fourlane.expert_load", "fourlane.placement", "fourlane.expert_counts"
VERSION = 1
PHASES = ("prefill", "decode", "mixed")
_LOAD_DIMS = ("[layers, experts]", "[windows, layers, experts]")
_COUNT_DIMS = ("[ranks, experts]", "[batches, ranks, experts]")


class Loads(Protocol):
    """What can be written as loads: windows, and steps a window where known."""

    @property
    def load_WLE(self) -> NDArray[Any]:  # noqa: N802 - a shape suffix
        """Return [windows, layers, experts] tokens."""
        ...

    @property
    def window_steps(self) -> int | None:
        """Return steps a window."""
        ...


@dataclass(frozen=True, eq=False)
class LoadArrays:
    """One phase's loads: windows, oldest first; int64, or float64 where the file has fractions."""

    load_WLE: NDArray[Any]
    window_steps: int | None = None
    source: str = ""


@dataclass(frozen=True, eq=False)
class PlacementArrays:
    """A placement: [layers, slots] int32 with the expert in each slot, -1 where empty; experts a layer; ranks."""

    slot_of_LP: NDArray[Any]
    experts: int
    ranks: int


# Loads ------------------------------------------------------------------------------------------------


def read_loads(path: str | Path) -> dict[str, LoadArrays]:
    """Read loads by phase: "prefill" and "decode", or "mixed" where the file does not say.

    Raises:
        SpecError: the file holds no loads, or with every fault of those it holds.
        EnvironmentMissing: it is in safetensors, which is not installed.
    """
    path, faults = Path(path), list[str]()
    data = read_container(path)
    found = _loads_of(data, faults)
    shapes = {phase: loads.load_WLE.shape[1:] for phase, loads in found.items()}
    if not faults and len(set(shapes.values())) > 1:
        told = ", ".join(f"{phase} {list(shape)}" for phase, shape in shapes.items())
        faults.append(f"phases: expected the same layers and experts in each, got {told}")
    _refuse(path, faults)
    return found


def _loads_of(data: Any, faults: list[str]) -> dict[str, LoadArrays]:
    if not isinstance(data, dict):
        return _mixed(_windows(data, "numbers", faults))
    if data.get("format") == LOAD_FORMAT:
        return _ours(data, faults)
    for name, reader in _FORMS.items():
        if name in data:
            return reader(data, faults)
    if len(data) == 1:
        [(name, value)] = data.items()
        return _mixed(_windows(value, str(name), faults))
    wanted = f'"format": "{LOAD_FORMAT}", "logical_count" (SGLang), "load_history" or "expert_load_window" (vLLM)'
    faults.append(f"expected {wanted}, or one array of loads, got {', '.join(map(str, data)) or 'nothing'}")
    return {}


def _ours(data: dict[str, Any], faults: list[str]) -> dict[str, LoadArrays]:
    _check_version(data, faults)
    source = data.get("source", "")
    if not isinstance(source, str):
        faults.append(f"source: expected text, got {source!r}")
    phases = data.get("phases", {name: data[name] for name in PHASES if name in data})
    if not isinstance(phases, dict) or not phases:
        faults.append(f"phases: expected a table with any of {', '.join(PHASES)}, got {phases!r:.60}")
        return {}
    found: dict[str, LoadArrays] = {}
    for phase, table in phases.items():
        if phase not in PHASES:
            faults.append(f"phases.{phase}: unknown phase; known: {', '.join(PHASES)}")
        elif not isinstance(table, dict) or "load_WLE" not in table:
            faults.append(f"phases.{phase}.load_WLE: expected {_LOAD_DIMS[1]}, but it is missing")
        else:
            steps = table.get("window_steps")
            if steps is not None:
                steps = checked_count(steps, f"phases.{phase}.window_steps", faults)
            load_WLE = checked_array(table["load_WLE"], f"phases.{phase}.load_WLE", faults, dims=_LOAD_DIMS[1:])
            if load_WLE is not None:
                found[phase] = LoadArrays(load_WLE, window_steps=steps, source=source)
    return found


def _mixed(load_WLE: NDArray[Any] | None, **more: Any) -> dict[str, LoadArrays]:
    return {} if load_WLE is None else {"mixed": LoadArrays(load_WLE, **more)}


def _windows(value: Any, place: str, faults: list[str]) -> NDArray[Any] | None:
    load = checked_array(value, place, faults, dims=_LOAD_DIMS)
    return None if load is None else load.reshape(-1, *load.shape[-2:])


def _foreign(data: dict[str, Any], faults: list[str]) -> dict[str, LoadArrays]:
    faults.append(f'format: expected "{LOAD_FORMAT}", got {data["format"]!r:.60}')
    return {}


def _sglang(data: dict[str, Any], faults: list[str]) -> dict[str, LoadArrays]:
    return _mixed(_windows(data["logical_count"], "logical_count", faults), source="SGLang")


def _history(data: dict[str, Any], faults: list[str]) -> dict[str, LoadArrays]:
    """Return vLLM's published form: a list of steps, each with `logical_expert_load`."""
    value, key = data["load_history"], "logical_expert_load"
    if not isinstance(value, list) or not value:
        faults.append(f'load_history: expected a list of tables with "{key}", got {value!r:.60}')
        return {}
    without = [index for index, step in enumerate(value) if not isinstance(step, dict) or key not in step]
    faults.extend(f"load_history[{index}].{key}: expected {_LOAD_DIMS[0]}, but it is missing" for index in without[:5])
    if without:
        return {}
    loads = [step[key] for step in value]
    return _mixed(checked_array(loads, f"load_history.{key}", faults, dims=_LOAD_DIMS[1:]), source="vLLM")


def _physical(data: dict[str, Any], faults: list[str]) -> dict[str, LoadArrays]:
    """Return the loads of vLLM's window, a step a window."""
    return _mixed(_physical_window(data, faults), source="vLLM", window_steps=1)


def _physical_window(data: dict[str, Any], faults: list[str]) -> NDArray[Any] | None:
    """Return vLLM's load window by logical expert: oldest step first, steps never recorded left out."""
    import numpy as np

    dims = ("[steps, layers, physical experts]",)
    load_WLP = checked_array(data["expert_load_window"], "expert_load_window", faults, dims=dims)
    place = "physical_to_logical_map"
    if place not in data:
        faults.append(f"{place}: expected [layers, physical experts] beside expert_load_window, but it is missing")
        return None
    slot_of_LP = checked_array(data[place], place, faults, dims=("[layers, physical experts]",), least=-1, whole=True)
    if load_WLP is None or slot_of_LP is None:
        return None
    if slot_of_LP.shape != load_WLP.shape[1:]:
        faults.append(f"{place}: expected shape {list(load_WLP.shape[1:])}, got {list(slot_of_LP.shape)}")
        return None
    load_WLP = np.roll(load_WLP, -int(data.get("expert_load_window_step", 0)), axis=0)
    load_WLP = load_WLP[load_WLP.any(axis=(1, 2))]
    if not load_WLP.size or slot_of_LP.max() < 0:
        faults.append("expert_load_window: expected some tokens, got none in any step")
        return None
    layers = np.arange(slot_of_LP.shape[0])[:, None]
    load_WLE = np.zeros((len(load_WLP), slot_of_LP.shape[0], int(slot_of_LP.max()) + 1), dtype=load_WLP.dtype)
    for load_LE, load_LP in zip(load_WLE, np.where(slot_of_LP < 0, 0, load_WLP), strict=True):
        np.add.at(load_LE, (layers, np.maximum(slot_of_LP, 0)), load_LP)
    return load_WLE


_FORMS = {
    "format": _foreign,
    "logical_count": _sglang,
    "load_history": _history,
    "expert_load_window": _physical,
}


_WRITTEN: dict[str, Callable[[NDArray[Any]], dict[str, Any]]] = {
    "sglang": lambda load_WLE: {"logical_count": load_WLE.sum(axis=0)},
    "vllm": lambda load_WLE: {"load_history": [{"logical_expert_load": load_LE.tolist()} for load_LE in load_WLE]},
}
"""What each other form holds of one phase's loads."""


def load_document(phases: Mapping[str, Loads], *, source: str = "") -> dict[str, Any]:
    """Return loads as the tree our formats hold; arrays are left arrays, `window_steps` left out where unknown."""
    tables = {
        phase: {
            **({} if loads.window_steps is None else {"window_steps": loads.window_steps}),
            "load_WLE": loads.load_WLE,
        }
        for phase, loads in phases.items()
    }
    return {"format": LOAD_FORMAT, "version": VERSION, "source": source, "phases": tables}


def write_loads(path: str | Path, phases: Mapping[str, Loads], *, source: str = "", form: str = "fourlane") -> None:
    """Write loads by phase; the suffix says the container: .json, .npz or .safetensors.

    Args:
        path: the file.
        phases: by "prefill", "decode" or "mixed".
        source: where they come from, for people.
        form: "fourlane"; or, in JSON and of one phase, "sglang" for what `--init-expert-location` of SGLang reads,
            `logical_count` [layers, experts] summed over windows, or "vllm" for a `load_history`, a window a step.

    Raises:
        SpecError: the file cannot be written so, or the loads are not what `read_loads` would take.
        EnvironmentMissing: safetensors is not installed.
    """
    path = Path(path)
    if form in _WRITTEN:
        if len(phases) != 1 or path.suffix != ".json":
            raise SpecError(f"{path}: form {form} holds one phase, in JSON; got {', '.join(phases)}, {path.suffix!r}")
        [loads] = phases.values()
        write_container(path, _WRITTEN[form](loads.load_WLE))
        return
    if form != "fourlane":
        known = ", ".join(f'"{each}"' for each in ("fourlane", *_WRITTEN))
        raise SpecError(f'form: expected {known}, got "{form}"')
    document = load_document(phases, source=source)
    faults: list[str] = []
    _ours(document, faults)
    _refuse(path, faults)
    write_container(path, document if path.suffix == ".json" else _without_phases(document))


def _without_phases(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document with phases at its top, as npz and safetensors name them: decode/load_WLE."""
    return {**{name: item for name, item in document.items() if name != "phases"}, **document["phases"]}


# Placements -------------------------------------------------------------------------------------------


def read_placement(path: str | Path) -> PlacementArrays:
    """Read a placement.

    Raises:
        SpecError: the file holds none, or with its faults. That every expert has a slot is `Placement`'s to check.
        EnvironmentMissing: it is in safetensors, which is not installed.
    """
    path, faults = Path(path), list[str]()
    data = read_container(path)
    if not isinstance(data, dict) or data.get("format") != PLACEMENT_FORMAT:
        raise SpecError(f"{path}: {_no_placement(data)}")
    _check_version(data, faults)
    ranks = checked_count(data.get("ranks"), "ranks", faults)
    experts = checked_count(data.get("experts"), "experts", faults)
    value = data.get("slot_of_LP")
    slot_of_LP = checked_array(value, "slot_of_LP", faults, dims=("[layers, slots]",), least=-1, whole=True)
    if slot_of_LP is not None and ranks is not None and slot_of_LP.shape[1] % ranks:
        faults.append(f"slot_of_LP: expected a multiple of {ranks} ranks' slots, got {slot_of_LP.shape[1]}")
    if slot_of_LP is not None and experts is not None and slot_of_LP.max() >= experts:
        faults.append(f"slot_of_LP: expected experts -1 to {experts - 1}, got {slot_of_LP.max()}")
    _refuse(path, faults)
    assert slot_of_LP is not None
    assert experts is not None
    assert ranks is not None
    return PlacementArrays(slot_of_LP.astype("int32"), experts=experts, ranks=ranks)


def _no_placement(data: Any) -> str:
    wanted = f'expected "format": "{PLACEMENT_FORMAT}"'
    if isinstance(data, dict) and "physical_to_logical_map" in data:
        return f"{wanted}, got SGLang's physical_to_logical_map, which does not say how many ranks share the slots"
    found = repr(data["format"]) if isinstance(data, dict) and "format" in data else "none"
    return f"{wanted}, got {found}"


def write_placement(path: str | Path, slot_of_LP: NDArray[Any], *, experts: int, ranks: int) -> None:
    """Write a placement; the suffix says the container: .json, .npz or .safetensors.

    Raises:
        SpecError: the file cannot be written.
        EnvironmentMissing: safetensors is not installed.
    """
    document = {"format": PLACEMENT_FORMAT, "version": VERSION, "ranks": ranks, "experts": experts}
    write_container(Path(path), {**document, "slot_of_LP": slot_of_LP})


# A batch's counts -------------------------------------------------------------------------------------


def read_counts(path: str | Path) -> NDArray[Any]:
    """Read a batch's tokens of each rank for each expert, [ranks, experts], or of several [batches, ranks, experts].

    The file holds one array, under any name or none, or ours (`write_counts`).

    Raises:
        SpecError: the file holds no counts, or with their faults.
        EnvironmentMissing: it is in safetensors, which is not installed.
    """
    path, faults = Path(path), list[str]()
    data = read_container(path)
    place = "counts"
    if isinstance(data, dict):
        known = [name for name in ("count_WGE", "count_GE") if name in data] or list(data)
        if len(known) != 1 or data.get("format", COUNTS_FORMAT) != COUNTS_FORMAT:
            found = ", ".join(f"{name} {data[name]!r:.30}" if name == "format" else str(name) for name in data)
            raise SpecError(f"{path}: expected one array, {' or '.join(_COUNT_DIMS)}, got {found or 'nothing'}")
        if "format" in data:
            _check_version(data, faults)
        place = str(known[0])
        data = data[known[0]]
    count = checked_array(data, place, faults, dims=_COUNT_DIMS, whole=True)
    _refuse(path, faults)
    assert count is not None
    return count


def write_counts(path: str | Path, count: NDArray[Any]) -> None:
    """Write counts, [ranks, experts] or [batches, ranks, experts]; the suffix says the container.

    Raises:
        SpecError: the file cannot be written.
        EnvironmentMissing: safetensors is not installed.
    """
    name = "count_GE" if count.ndim == 2 else "count_WGE"
    write_container(Path(path), {"format": COUNTS_FORMAT, "version": VERSION, name: count})


# ------------------------------------------------------------------------------------------------------


def _check_version(data: dict[str, Any], faults: list[str]) -> None:
    if data.get("version") != VERSION:
        faults.append(f"version: expected {VERSION}, got {data.get('version')!r}; a newer fourlane may read it")


def _refuse(path: Path, faults: list[str]) -> None:
    if faults:
        raise SpecError(*(f"{path}: {fault}" for fault in faults))
