"""SGLang's files: initial expert locations, and what its expert distribution recorder dumps.

Not for load files as such (`spec.expert_files` has those, SGLang's `logical_count` in JSON among them).
torch is imported only for `.pt` files, and they are read with `weights_only`: nothing in them is run.

Source: sglang 0.5.23, srt/eplb/expert_location.py (`compute_initial_expert_location_metadata`) and
srt/eplb/expert_distribution.py (`_StatAccumulator.dump`, `_DetailAccumulator.dump`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourlane.errors import EnvironmentMissing, SpecError
from fourlane.integrations.eplb import without_doubles
from fourlane.policy.placement import EMPTY, Placement
from fourlane.spec.expert_files import LoadArrays

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["read_physical_to_logical", "read_recorded_loads", "write_init_expert_location"]


def write_init_expert_location(path: str | Path, placement: Placement, *, dense_layers: int = 0) -> None:
    """Write a placement for SGLang's `--init-expert-location`, as `.json` or `.pt`.

    Args:
        path: the file; SGLang tells the two formats apart by the suffix.
        placement: no slot of it may be empty.
        dense_layers: layers of the model in front of those in the placement that have no experts
            (`first_k_dense_replace`; 3 for DeepSeek-V3). SGLang counts them, so they get rows as well,
            with its own trivial order. 0 where the loads came from SGLang, which has counted them already.

    Raises:
        SpecError: another suffix, or an empty slot, which SGLang would take for the last expert.
    """
    path = Path(path)
    empty = np.argwhere(placement.slot_of_LP == EMPTY)
    if empty.size:
        layer, slot = map(int, empty[0])
        raise SpecError(
            f"{path}: SGLang knows no empty slots, and slot {slot} of layer {layer} is one; "
            f"place the experts on slots that can all be filled, with --every-slot"
        )
    slots = placement.slot_of_LP.shape[1]
    trivial = np.tile(np.arange(slots, dtype=np.int64) % placement.experts, (dense_layers, 1))
    table = np.concatenate([trivial, placement.slot_of_LP.astype(np.int64)])
    # SGLang hands every key of the file on as an argument: it may hold nothing else.
    if path.suffix == ".json":
        path.write_text(json.dumps({"physical_to_logical_map": table.tolist()}) + "\n", encoding="utf-8")
    elif path.suffix == ".pt":
        torch = _torch(path)
        torch.save({"physical_to_logical_map": torch.from_numpy(table)}, path)
    else:
        raise SpecError(f"{path}: expected a name that ends in .json or .pt, which SGLang reads, got {path.suffix!r}")


def read_physical_to_logical(path: str | Path, *, ranks: int, experts: int | None = None) -> Placement:
    """Read the `physical_to_logical_map` of an initial location or of a recorder's dump.

    A second copy of an expert on a rank, which EPLB's algorithm makes at times, carries no load of its own:
    its slot is read as empty.

    Args:
        path: `.json` or `.pt`.
        ranks: ranks that share the slots.
        experts: logical experts a layer; None: as many as the map names.

    Raises:
        SpecError: no such map in it, or a shape that does not fit `ranks`.
    """
    path = Path(path)
    data = _load(path)
    key = next((key for key in ("physical_to_logical_map", "last_physical_to_logical_map") if key in data), None)
    if key is None:
        found = ", ".join(sorted(map(str, data))) or "nothing"
        raise SpecError(f"{path}: expected physical_to_logical_map, got {found}")
    table = _integers(path, key, data[key], ndim=2)
    if not table.size or table.shape[1] % ranks:
        raise SpecError(f"{path}: {key}: expected rows of a multiple of {ranks} ranks' slots, got shape {table.shape}")
    try:
        return Placement(without_doubles(table, ranks), experts=experts or int(table.max()) + 1, ranks=ranks)
    except ValueError as fault:
        raise SpecError(f"{path}: {key}: {fault}") from None


def read_recorded_loads(*paths: str | Path) -> LoadArrays:
    """Read dumps of SGLang's expert distribution recorder, one window a forward pass.

    Modes `stat` and `stat_approx` leave one file, `logical_count`; mode `per_pass` leaves one a rank, to be given
    together: the passes are put in order and summed over the ranks. Passes in which no expert got a token
    (the recorder's buffer before it was full) are left out. The recorder does not say which passes were prefill:
    `write_loads(path, {"mixed": ...})` of `spec.expert_files` takes what is returned here.

    Returns:
        load_WLE int64, [passes, layers, experts]; layers without experts are zero.

    Raises:
        SpecError: another file, files that do not belong together, or no tokens at all.
    """
    dumps = {Path(path): _load(Path(path)) for path in paths}
    if all("logical_count" in data for data in dumps.values()):
        counted = [_counts(path, data["logical_count"]) for path, data in dumps.items()]
    elif all("records" in data for data in dumps.values()):
        counted = [_sum_of_passes(dumps)]
    else:
        raise SpecError(
            f"{', '.join(map(str, dumps))}: expected dumps of SGLang's expert distribution recorder, "
            f"all with logical_count or all with records"
        )
    if len({load_WLE.shape[1:] for load_WLE in counted}) != 1:
        raise SpecError(f"{', '.join(map(str, dumps))}: the files are of different layers or experts; give them apart")
    load_WLE = np.concatenate(counted)
    load_WLE = load_WLE[load_WLE.any(axis=(1, 2))]
    if not load_WLE.size:
        raise SpecError(f"{', '.join(map(str, dumps))}: no expert got a token; record while requests are served")
    return LoadArrays(load_WLE, window_steps=1, source="SGLang")


def _sum_of_passes(dumps: Mapping[Path, Mapping[str, Any]]) -> np.ndarray:
    """Return load_WLE of a `per_pass` recording, summed over ranks and over the parts of a pass."""
    passes: dict[int, np.ndarray] = {}
    for path, data in dumps.items():
        slot_of_LP = _integers(path, "last_physical_to_logical_map", data.get("last_physical_to_logical_map"), ndim=2)
        for record in data["records"]:
            if "global_physical_count" not in record:
                raise SpecError(f"{path}: expected records of mode per_pass, got {', '.join(sorted(record))}")
            count_LP = _integers(path, "global_physical_count", record["global_physical_count"], ndim=2)
            if count_LP.shape != slot_of_LP.shape:
                raise SpecError(f"{path}: global_physical_count: expected {slot_of_LP.shape}, got {count_LP.shape}")
            count_LE = np.zeros((slot_of_LP.shape[0], int(slot_of_LP.max()) + 1), dtype=np.int64)
            np.add.at(count_LE, (np.arange(slot_of_LP.shape[0])[:, None], slot_of_LP), count_LP)
            step = int(record["forward_pass_id"])
            passes[step] = passes[step] + count_LE if step in passes else count_LE
    if not passes:
        raise SpecError(f"{', '.join(map(str, dumps))}: no pass was recorded; record while requests are served")
    return np.stack([passes[step] for step in sorted(passes)])


def _counts(path: Path, value: object) -> np.ndarray:
    count = _integers(path, "logical_count", value)
    if count.ndim not in {2, 3}:
        shapes = "[layers, experts] or [passes, layers, experts]"
        raise SpecError(f"{path}: logical_count: expected {shapes}, got shape {count.shape}")
    return count.reshape(-1, *count.shape[-2:])


def _integers(path: Path, name: str, value: Any, *, ndim: int | None = None) -> np.ndarray:
    """Return what a file holds under a name as int64, refusing what is not whole numbers of that many dims."""
    try:
        array = np.asarray(value.numpy() if hasattr(value, "numpy") else value)
    except ValueError:
        raise SpecError(f"{path}: {name}: expected rows of equal length") from None
    if not np.issubdtype(array.dtype, np.integer) or (ndim is not None and array.ndim != ndim) or (array < 0).any():
        dims = f"{ndim} dimensions" if ndim else "dimensions"
        raise SpecError(f"{path}: {name}: expected whole numbers >= 0 in {dims}, got {array.dtype} {array.shape}")
    return array.astype(np.int64)


def _load(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".pt":
            data = _torch(path).load(path, weights_only=True, map_location="cpu")
        else:
            data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file") from None
    except EnvironmentMissing:
        raise
    except Exception as fault:  # noqa: BLE001 - what torch.load raises is said nowhere
        raise SpecError(f"{path}: expected JSON, or tensors as torch.save writes them in a .pt file: {fault}") from None
    if not isinstance(data, dict):
        raise SpecError(f"{path}: expected named entries, got {type(data).__name__}")
    return data


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise EnvironmentMissing(f'{path}: needs torch: pip install "fourlane[engine]", or use .json') from None
    return torch
