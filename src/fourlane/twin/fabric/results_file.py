"""Results as a file: NumPy's .npz without pickled objects, texts as JSON; readable on any machine."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from fourlane.errors import SpecError
from fourlane.twin.fabric.results import Results

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FORMAT", "SavedScenario", "load", "save"]

FORMAT = 1
_HEAD = "fourlane_results"
_ARRAYS = (
    "port_node",
    "port_peer",
    "port_ps_q16",
    "node_first_port",
    "flow_src_port",
    "flow_dst_port",
    "flow_size",
    "flow_class",
    "sample_ports",
)


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    """What is no array."""

    format: int
    class_names: tuple[str, ...]
    queue_names: tuple[str, ...]
    node_names: tuple[str, ...]
    flow_groups: tuple[tuple[str, int], ...]
    seed: int
    scalars: dict[str, int | float | str]


@dataclass(frozen=True, eq=False, kw_only=True)
class SavedScenario:
    """What of a scenario its results are read with."""

    port_node: NDArray[np.int32]
    port_peer: NDArray[np.int32]
    port_ps_q16: NDArray[np.int64]
    node_first_port: NDArray[np.int32]
    flow_src_port: NDArray[np.int32]
    flow_dst_port: NDArray[np.int32]
    flow_size: NDArray[np.int64]
    flow_class: NDArray[np.uint8]
    sample_ports: NDArray[np.int32]
    class_names: tuple[str, ...]
    queue_names: tuple[str, ...]
    node_names: tuple[str, ...]
    flow_groups: tuple[tuple[str, int], ...]
    seed: int

    def node_name(self, node: int) -> str:
        """Return a node's name."""
        return self.node_names[node]

    def flow_name(self, flow: int) -> str:
        """Return a flow's name: its group's and its number within it."""
        for name, first in reversed(self.flow_groups):
            if first <= flow:
                return f"{name}[{flow - first}]"
        return f"flow {flow}"


def save(results: Results, path: str | Path) -> None:
    """Write results into a .npz file.

    Raises:
        SpecError: it cannot be written.
    """
    scenario = results.scenario
    scalars = {name: _plain(value) for name, value in results.raw.items() if np.ndim(value) == 0}
    head = _Head(
        format=FORMAT,
        class_names=results.class_names,
        queue_names=results.queue_names,
        node_names=tuple(scenario.node_name(node) for node in range(len(scenario.node_first_port) - 1)),
        flow_groups=tuple((name, int(first)) for name, first in scenario.flow_groups),
        seed=int(scenario.seed),
        scalars=scalars,
    )
    arrays = {f"raw_{name}": value for name, value in results.raw.items() if name not in scalars}
    arrays |= {name: getattr(scenario, name) for name in _ARRAYS}
    arrays[_HEAD] = np.frombuffer(msgspec.json.encode(head), dtype=np.uint8)
    try:
        with Path(path).open("wb") as file:
            np.savez_compressed(file, **arrays)
    except OSError as error:
        raise SpecError(f"{path}: cannot be written: {error.strerror}") from error


def load(path: str | Path) -> Results:
    """Read results from a .npz file.

    Raises:
        SpecError: it cannot be read, or is no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        head = msgspec.json.decode(arrays.pop(_HEAD).tobytes(), type=_Head)
    except (OSError, ValueError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        raise SpecError(f"{path}: expected results written by Results.save: {error}") from error
    if head.format != FORMAT:
        raise SpecError(f"{path}: written in format {head.format}, expected {FORMAT}: simulate it again")
    texts = {field.name: getattr(head, field.name) for field in fields(SavedScenario) if field.name not in _ARRAYS}
    try:
        scenario = SavedScenario(**{name: arrays[name] for name in _ARRAYS}, **texts)
    except KeyError as error:
        raise SpecError(f"{path}: expected results written by Results.save: {error} is missing") from error
    raw = {name.removeprefix("raw_"): array for name, array in arrays.items() if name.startswith("raw_")}
    return Results(scenario, {**head.scalars, **raw})


def _plain(value: object) -> int | float | str:
    """Return a scalar as Python's own."""
    plain = value.item() if isinstance(value, (np.generic, np.ndarray)) else value
    if not isinstance(plain, (int, float, str)):
        raise TypeError(f"raw results: expected numbers and texts, got {plain!r}")
    return plain
