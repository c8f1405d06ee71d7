"""`fourlane experts generate`: draw a load file, or batches, like those of real models."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fourlane.cli.experts.inputs import one_phase, phase_option, seed_option
from fourlane.errors import SpecError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fourlane.policy.expert_statistics import LoadHistory
    from fourlane.policy.load_generator import ModelShape

__all__ = ["MODELS", "drawn_loads", "generate"]

MODELS = ("phases", "decode", "prefill", "zipf", "lognormal", "single-hot")
"""`phases` is prefill and decode of one model; the others are one load."""
EXAMPLES = """\b
Examples:
  fourlane experts generate -o loads.npz                                 prefill and decode, four windows each
  fourlane experts generate --model decode --windows 12 --rho 0.95 -o drifting.json
  fourlane experts generate --model zipf --exponent 1.0 --layers 8 --experts 64 --groups 8 -o zipf.npz
  fourlane experts generate --batches 4 --ranks 32 --lean-sd 0.3 -o counts.npz
  fourlane experts generate --batches 4 --ranks 32 --loads loads.npz --phase decode --layer 3 -o counts.npz
"""


@click.command(epilog=EXAMPLES)
@click.option("--model", type=click.Choice(MODELS), default="phases", show_default=True, help="What loads look like.")
@click.option("--exponent", type=click.FloatRange(0), default=1.0, show_default=True, help="Of zipf.")
@click.option("--sigma", type=click.FloatRange(0), default=0.75, show_default=True, help="Of lognormal.")
@click.option("--correlation", type=click.FloatRange(0, 1), default=0.8, show_default=True, help="Of the two phases.")
@click.option("--layers", type=click.IntRange(1), default=58, show_default=True, help="With experts.")
@click.option("--experts", type=click.IntRange(1), default=256, show_default=True, help="A layer.")
@click.option("--groups", type=click.IntRange(1), default=8, show_default=True, help="Of experts that go together.")
@click.option("--top-k", type=click.IntRange(1), default=8, show_default=True, help="Experts a token goes to.")
@click.option("--tokens", type=click.IntRange(1), default=1 << 20, show_default=True, help="Of a window.")
@click.option("--windows", type=click.IntRange(1), default=4, show_default=True, help="Successive ones, drifting.")
@click.option("--rho", type=click.FloatRange(0, 1), default=0.98, show_default=True, help="Correlation of two.")
@click.option("--batches", type=click.IntRange(1), help="Draw so many batches of one layer instead, for `split`.")
@click.option("--ranks", type=click.IntRange(1), help="Of the batches.")
@click.option("--batch-tokens", type=click.IntRange(1), default=128, show_default=True, help="Of a rank in a batch.")
@click.option("--lean-sd", type=click.FloatRange(0), default=0.2, show_default=True, help="How much batches lean.")
@click.option("--loads", help="Draw the batches from this file's loads.")
@click.option("--layer", type=click.IntRange(0), default=0, show_default=True, help="Of those loads.")
@phase_option
@seed_option
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The file.")
def generate(**given: Any) -> None:
    """Draw a load file with the skew, phases and drift of recorded loads of real models, or batches that lean.

    The suffix says the format: .npz, .json or .safetensors. The same seed draws the same on every machine.
    """
    import numpy as np

    rng = np.random.default_rng(given["seed"])
    if given["batches"] is not None:
        _write_batches(rng, given)
    elif given["ranks"] is not None or given["loads"] is not None:
        name = "--ranks" if given["ranks"] is not None else "--loads"
        raise SpecError(f"{name}: expected with --batches, which draws batches")
    else:
        from fourlane.spec.expert_files import write_loads

        write_loads(
            given["output"], drawn_loads(rng, given), source=f"fourlane experts generate --model {given['model']}"
        )
    click.echo(f"written: {given['output']}", file=sys.stderr)


def drawn_loads(rng: np.random.Generator, given: dict[str, Any]) -> dict[str, LoadHistory]:
    """Draw windows of loads by phase."""
    from fourlane.policy.expert_statistics import LoadHistory
    from fourlane.policy.load_generator import drift_windows

    return {
        phase: LoadHistory(drift_windows(load_LE, given["windows"], given["rho"], rng, top_k=given["top_k"]))
        for phase, load_LE in _first(rng, _shape(given), given).items()
    }


def _shape(given: dict[str, Any]) -> ModelShape:
    """Return what loads are drawn for.

    Raises:
        SpecError: naming the option that does not fit the others.
    """
    from fourlane.policy.load_generator import ModelShape

    experts = given["experts"]
    if given["top_k"] > experts:
        raise SpecError(f"--top-k: expected at most {experts} experts a token, got {given['top_k']}")
    if given["groups"] > experts:
        raise SpecError(f"--groups: expected at most {experts}, one an expert, got {given['groups']}")
    names = ("layers", "experts", "groups", "top_k", "tokens")
    return ModelShape(**{name: given[name] for name in names})


def _first(rng: np.random.Generator, shape: ModelShape, given: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """Draw the first window by phase."""
    from fourlane.policy.load_generator import PRESETS, draw_phases, lognormal, single_hot, zipf

    model = given["model"]
    if model == "phases":
        prefill, decode = draw_phases(rng, shape, correlation=given["correlation"])
        return {"prefill": prefill, "decode": decode}
    if model in PRESETS:
        return {model: PRESETS[model].draw(rng, shape)}
    if model == "single-hot":
        return {"mixed": single_hot(rng, shape)}
    drawn = zipf(given["exponent"], rng, shape) if model == "zipf" else lognormal(given["sigma"], rng, shape)
    return {"mixed": drawn}


def _write_batches(rng: np.random.Generator, given: dict[str, Any]) -> None:
    """Draw counts [batches, ranks, experts] of one layer and write them.

    Raises:
        SpecError: an option is missing or does not fit.
    """
    import numpy as np

    from fourlane.policy.load_generator import leaning_batch
    from fourlane.spec.expert_files import write_counts

    if given["ranks"] is None:
        raise SpecError("--ranks: expected with --batches: how many ranks the batches are of")
    load_LE = _batch_loads(rng, given)
    if given["layer"] >= len(load_LE):
        raise SpecError(f"--layer: expected 0..{len(load_LE) - 1}, got {given['layer']}")
    counts = [
        leaning_batch(
            load_LE[given["layer"]],
            rng,
            ranks=given["ranks"],
            tokens=given["batch_tokens"],
            lean_sd=given["lean_sd"],
            top_k=given["top_k"],
        )
        for _ in range(given["batches"])
    ]
    write_counts(given["output"], np.stack(counts))


def _batch_loads(rng: np.random.Generator, given: dict[str, Any]) -> NDArray[Any]:
    """Return the loads batches are drawn from: the last window of a file, or of what a model draws."""
    if given["loads"] is not None:
        return one_phase(given["loads"], given["phase"])[1].load_WLE[-1]
    drawn = _first(rng, _shape(given), given)
    return drawn.get(given["phase"] or "decode", next(iter(drawn.values())))
