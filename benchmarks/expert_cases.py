"""What placements are compared on: loads, sizes, batches, and the baseline's placements as values of ours."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import eplb
import numpy as np

from fourlane.policy import load_generator as generator
from fourlane.policy.placement import EMPTY, Placement, Replicas, place_experts

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "SIZES",
    "Size",
    "Slots",
    "baseline",
    "baseline_value",
    "bundled_loads",
    "named_loads",
    "placed",
]

SEED = 20261127
BUNDLED = Path(generator.__file__).parents[1] / "engine" / "model" / "bundled" / "expert_use.json"


class Size(NamedTuple):
    """Ranks, and redundant slots beside one for each expert."""

    ranks: int
    redundant: int
    experts: int = 256

    @property
    def name(self) -> str:
        """Return the size as it is written: EP32+32."""
        return f"EP{self.ranks}+{self.redundant}"

    @property
    def slots(self) -> int:
        """Return the slots of all ranks."""
        return self.experts + self.redundant


SIZES = (Size(32, 32), Size(64, 64), Size(128, 128), Size(144, 32))
BUNDLED_SIZES = (Size(4, 4, 32), Size(8, 8, 32), Size(16, 16, 32))


@cache
def named_loads(layers: int = 58) -> dict[str, NDArray[np.int64]]:
    """Return the loads of 256 experts that placements are made for, each drawn from one seed."""
    shape = generator.ModelShape(layers=layers)

    def rng(index: int) -> np.random.Generator:
        return np.random.default_rng((SEED, index))

    prefill_LE, decode_LE = generator.draw_phases(rng(0), shape)
    loads = {"decode": decode_LE, "prefill": prefill_LE}
    loads |= {f"zipf {a}": generator.zipf(a, rng(1), shape) for a in (0.6, 1.0)}
    loads |= {f"lognormal {s}": generator.lognormal(s, rng(2), shape) for s in (0.5, 0.75, 1.0, 1.25)}
    loads["single hot"] = generator.single_hot(rng(3), shape)
    for rho in (0.99, 0.95):
        loads[f"drifted, rho {rho}"] = generator.drift_windows(decode_LE, 9, rho, rng(4))[-1]
    return loads


def bundled_loads() -> dict[str, NDArray[np.int64]]:
    """Return the bundled model's loads on real text: held-out documents, and text of its own."""
    recorded = json.loads(BUNDLED.read_text(encoding="utf-8"))
    return {name: np.array(recorded[name]["load_LE"]) for name in ("prompts", "generated")}


def baseline(load_LE: NDArray[Any], size: Size, **hierarchy: int) -> NDArray[np.int64]:
    """Return EPLB's slots for a load."""
    return eplb.eplb_slots(load_LE, slots=size.slots, ranks=size.ranks, **hierarchy)


def baseline_value(slot_of_LP: NDArray[np.int64], size: Size) -> Placement:
    """Return EPLB's slots as a placement: a rank's second copy of an expert, which can do nothing, left empty."""
    rows = slot_of_LP.reshape(-1, size.slots // size.ranks).astype(np.int32)
    for place in range(1, rows.shape[1]):
        again = (rows[:, :place] == rows[:, place, None]).any(axis=1)
        rows[again, place] = EMPTY
    return Placement(rows.reshape(slot_of_LP.shape), experts=size.experts, ranks=size.ranks)


class Slots:
    """EPLB's slots as they are, two copies on a rank and all, for choices of replicas to be made on."""

    def __init__(self, slot_of_LP: NDArray[np.int64], size: Size) -> None:
        self.slot_of_LP, self.ranks, self.experts, self.slots = slot_of_LP, size.ranks, size.experts, size.slots

    def replicas(self, layer: int) -> Replicas:
        """Return the slots of each expert in a layer."""
        slot_of_P = self.slot_of_LP[layer]
        slot_R = np.argsort(slot_of_P, kind="stable").astype(np.int32)
        start_E1 = np.concatenate([[0], np.bincount(slot_of_P, minlength=self.experts).cumsum()]).astype(np.int32)
        return Replicas(start_E1, slot_R, (slot_R // (self.slots // self.ranks)).astype(np.int32))


def placed(load: NDArray[Any], size: Size, **more: Any) -> Placement:
    """Return our placement for a load."""
    return place_experts(load, ranks=size.ranks, slots=size.slots, **more)
