"""How long each part of a forward pass takes: the larger of computing and reading, kernel by kernel.

Operations and bytes follow from the architecture (`work`), rates from the GPU's peaks and what is reached of them
(`fourlane.spec.efficiencies`). Not for exchange, nor for how parts make a step (`fourlane.twin.step_model`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from fourlane.errors import SpecError
from fourlane.spec.efficiencies import Efficiencies, efficiencies
from fourlane.spec.hardware import GpuModel, load_gpu
from fourlane.spec.twin import Assumptions
from fourlane.twin.kernel_times.work import Kernel, PartWork
from fourlane.twin.times import Timed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fourlane.policy.stages import Part
    from fourlane.spec.architecture import Architecture
    from fourlane.twin.times import RankLoad

__all__ = ["RooflineTimes", "weights_type"]


def weights_type(architecture: Architecture, gpu: str, assumptions: Assumptions) -> str:
    """Return the type weights are held and multiplied in: as said, else as published, where the GPU can.

    Where it cannot, FP8 is INT8, where it has that; all else is BF16.

    Raises:
        SpecError: the assumptions ask for arithmetic that the GPU does not have.
    """
    chip = load_gpu(gpu)
    can = [name for name in ("fp8", "int8", "bf16") if chip.flops(name) is not None]
    if assumptions.weights is None:
        instead = ("int8", "bf16") if architecture.weights == "fp8" else ("bf16",)
        return next(name for name in (architecture.weights, *instead) if name in can)
    if assumptions.weights not in can:
        raise SpecError(f'assumptions.weights: expected {" or ".join(can)} on {gpu}, got "{assumptions.weights}"')
    return assumptions.weights


@dataclass(frozen=True)
class RooflineTimes:
    """Times of parts on a GPU of the catalog.

    Args:
        architecture: of the model.
        gpu: its name in the catalog.
        assumptions: in which types weights and KV cache are held, and how many tokens are drafted.
        figures: what is reached of the GPU's peaks; None: the catalog's.
    """

    architecture: Architecture
    gpu: str
    assumptions: Assumptions = field(default_factory=Assumptions)
    figures: Efficiencies | None = None

    def part(self, part: Part, load: RankLoad) -> Timed:
        """Return what a part takes in one layer."""
        kernels = self._work.kernels(part, load)
        fixed_s = sum(kernel.launches for kernel in kernels) * self._reached.kernel.seconds
        spent = {"compute": 0.0, "memory": 0.0}
        for kernel in kernels:
            computing_s, reading_s = self._computing_s(kernel), kernel.size / self._memory_rate
            spent["compute" if computing_s > reading_s else "memory"] += max(computing_s, reading_s)
        worked_s = sum(spent.values())
        bound = "launch" if fixed_s > worked_s else max(spent, key=lambda name: spent[name])
        return Timed((worked_s + fixed_s) / self._reached.sustained, bound, self._source(part, kernels))

    @cached_property
    def weights(self) -> str:
        """Return the type weights are held and multiplied in: as said, else as published where the GPU can."""
        return weights_type(self.architecture, self.gpu, self.assumptions)

    @cached_property
    def _chip(self) -> GpuModel:
        return load_gpu(self.gpu)

    @cached_property
    def _reached(self) -> Efficiencies:
        return self.figures or efficiencies(self.gpu)

    @cached_property
    def _work(self) -> PartWork:
        return PartWork(self.architecture, self.weights, self.assumptions.kv, 1 + self.assumptions.mtp_tokens)

    @cached_property
    def _memory_rate(self) -> float:
        return self._chip.memory_rate.bytes_per_second * self._reached.memory

    def _computing_s(self, kernel: Kernel) -> float:
        if not kernel.flops:
            return 0.0
        waste = 1 + kernel.matrices * self._reached.tile_rows / 2 / kernel.rows if kernel.rows else 1.0
        return kernel.flops * waste / self._rates[kernel.kind, kernel.dtype]

    @cached_property
    def _rates(self) -> dict[tuple[str, str], float]:
        reached = self._reached
        return {
            (kind, dtype): share * flops
            for kind, share in (
                ("dense", reached.dense),
                ("grouped", reached.grouped),
                ("attention prefill", reached.attention_prefill),
                ("attention decode", reached.attention_decode),
            )
            for dtype in ("fp8", "int8", "bf16")
            if (flops := self._chip.flops(dtype)) is not None
        }

    def _source(self, part: Part, kernels: Sequence[Kernel]) -> str:
        kinds = tuple(dict.fromkeys(kernel.kind for kernel in kernels if kernel.flops))
        key = (part, kinds)
        if key not in self._sources:
            self._sources[key] = self._told(kinds)
        return self._sources[key]

    @cached_property
    def _sources(self) -> dict[tuple[str, tuple[str, ...]], str]:
        return {}

    def _told(self, kinds: tuple[str, ...]) -> str:
        reached = self._reached
        names = {"attention prefill": "attention_prefill", "attention decode": "attention_decode"}
        figures = [names.get(kind, kind) for kind in kinds]
        shares = [self._share(name, getattr(reached, name)) for name in (*figures, "memory", "sustained")]
        return f"roofline of {self.gpu}, {self.weights} weights: {', '.join(shares)}"

    def _share(self, name: str, value: float) -> str:
        of = "" if name == "sustained" else " of peak"
        return f"{name.replace('_', ' ')} at {value:g}{of} ({self._reached.source(name)})"
