"""Say whether requests meet an SLO, which bound binds, and what would be met instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fourlane.twin.point_values import Verdict

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fourlane.spec.twin import Slo

    Floats = NDArray[np.float64]

__all__ = ["verdict"]


def verdict(slo: Slo, ttft_N: Floats, tpot_N: Floats, *, overloaded: str | None, rate: float) -> Verdict:
    """Return the verdict on requests.

    Args:
        slo: bounds on both, or on one, or on none.
        ttft_N, tpot_N: seconds, of each request.
        overloaded: the part that does not keep up with the rate; None if all do.
        rate: requests a second that are served.
    """
    limits = {"ttft": slo.ttft, "tpot": slo.tpot}
    found = {"ttft": ttft_N, "tpot": tpot_N}
    within = {
        name: np.ones(len(ttft_N), bool) if limit is None else found[name] <= limit.seconds
        for name, limit in limits.items()
    }
    share = {name: float(values.mean()) for name, values in within.items()}
    attainment = float((within["ttft"] & within["tpot"]).mean())
    if overloaded is not None:
        says = f"{overloaded} does not keep up: at most {rate:.4g} requests a second"
        return Verdict(met=False, attainment=0.0, ttft_share=0.0, tpot_share=share["tpot"], binds=overloaded, says=says)
    met = attainment >= slo.share
    margin = {
        name: np.quantile(found[name], slo.share) / limit.seconds for name, limit in limits.items() if limit is not None
    }
    binds = max(margin, key=lambda name: margin[name]) if margin else "capacity"
    return Verdict(met, attainment, share["ttft"], share["tpot"], binds, _words(slo, met, attainment, found, binds))


def _words(slo: Slo, met: bool, attainment: float, found: dict[str, Floats], binds: str) -> str:  # noqa: FBT001
    if binds == "capacity":
        return "no SLO is given"
    limit = getattr(slo, binds)
    reached_s = float(np.quantile(found[binds], slo.share))
    name = binds.upper()
    if met:
        return f"met by {attainment:.1%}; {name} is nearest: {_shown(reached_s)} of {limit} for {slo.share:.0%}"
    return (
        f"met by {attainment:.1%} of {slo.share:.0%}: {name} binds, {_shown(reached_s)} for {slo.share:.0%} of "
        f"requests where {limit} is asked; nearest miss: {name} within {_shown(reached_s)} would be met"
    )


def _shown(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
