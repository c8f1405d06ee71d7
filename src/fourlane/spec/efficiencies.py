"""What serving software reaches of a GPU's peaks: fitted or assumed, and said which, from the catalog beside it.

Not for the peaks (`fourlane.spec.hardware`).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fourlane.spec.hardware import load_gpu
from fourlane.spec.load import load
from fourlane.spec.reading import Fault
from fourlane.units import Duration, Size

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Efficiencies", "efficiencies"]

_CATALOG = Path(__file__).parent / "catalog"
_LIKE = "h100"
"""Whose figures stand for those of GPUs that have none: SGLang's, which others can run."""


class Efficiencies(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is reached of a GPU's peaks, and what is lost beside them.

    Args:
        dense: share of the peak that large GEMMs reach.
        grouped: that of grouped GEMMs, whose rows are filled up to whole tiles.
        attention_prefill, attention_decode: share of the BF16 peak that attention reaches.
        memory: share of the memory's rate.
        sustained: how fast all that is in a running service, of what kernels reach alone: clocks under load, gaps.
        tile_rows: rows of a tile of GEMMs; half a tile is wasted, on the mean, for each matrix.
        kernel: what a kernel takes beside its work: launch, first loads, last tile.
        sm_share_prefill, sm_share_decode: of processors, taken by communication while it is under way.
        micro_batch_inefficiency: by what share halves take longer than the roofline says.
        step_overhead: on the host, each step, not hidden.
        reserve: memory kept free for activations, buffers and the runtime.
        fitted: which of these were fitted, and on which published rows.
        sources: of the others.
    """

    dense: float
    grouped: float
    attention_prefill: float
    attention_decode: float
    memory: float
    sustained: float
    tile_rows: int
    kernel: Duration
    sm_share_prefill: float
    sm_share_decode: float
    micro_batch_inefficiency: float
    step_overhead: Duration
    reserve: Size
    fitted: dict[str, tuple[str, ...]]
    sources: dict[str, str]

    def source(self, figure: str) -> str:
        """Return where a figure is from: the rows it was fitted on, or where it was read."""
        rows = self.fitted.get(figure)
        return f"fitted: {' and '.join(rows)}" if rows else self.sources[figure]


class _Efficiencies(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    models: dict[str, Efficiencies]


@cache
def efficiencies(gpu: str) -> Efficiencies:
    """Return what is reached on a GPU of the catalog; one without figures of its own reaches what H100 does.

    Raises:
        SpecError: the catalog has no such GPU.
    """
    load_gpu(gpu)
    known = load(_CATALOG / "efficiencies.toml", _Efficiencies, rules=_faults).models
    name = gpu.lower().replace("_", "-").replace(" ", "-")
    if name in known:
        return known[name]
    like = known[_LIKE]
    taken = dict.fromkeys((*like.sources, *like.fitted), f"assumed: as on {_LIKE}")
    return msgspec.structs.replace(like, fitted={}, sources=taken)


def _faults(read: _Efficiencies) -> Iterator[Fault]:
    names = {field.name for field in msgspec.structs.fields(Efficiencies)} - {"fitted", "sources"}
    for gpu, figures in read.models.items():
        told = [*figures.fitted, *figures.sources]
        for figure in sorted(names ^ set(told) | {figure for figure in told if told.count(figure) > 1}):
            yield Fault(f"models.{gpu}", f"expected {figure} under fitted or sources, once, and nothing else")
