"""What the subcommands of `fourlane experts` have in common: loads of files and services, placements, sizes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fourlane.errors import SpecError
from fourlane.units import Quantity

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from fourlane.policy.placement import Placement
    from fourlane.spec.expert_files import LoadArrays

__all__ = [
    "PHASES",
    "json_option",
    "loads_of",
    "one_phase",
    "output_option",
    "phase_option",
    "placement_of",
    "quantity",
    "ranks_option",
    "seed_option",
    "show_json",
    "slots_of",
    "with_load",
]

Q = TypeVar("Q", bound=Quantity)
PHASES = ("prefill", "decode", "mixed")
_PATIENCE_S = 10.0

json_option = click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
seed_option = click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of what is drawn.")
ranks_option = click.option("--ranks", type=click.IntRange(1), required=True, help="Ranks that share the experts.")
phase_option = click.option(
    "--phase", type=click.Choice(PHASES), help="Of a file with several: their loads differ, so one is to be chosen."
)


def output_option(text: str, *, required: bool = False) -> Callable[[Any], Any]:
    """Make the option -o, a file."""
    return click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=required, help=text)


def loads_of(source: str) -> dict[str, LoadArrays]:
    """Read the loads of a file, or of the service at an http address, by phase.

    Raises:
        SpecError: there is nothing to be read, or it holds no loads.
        EnvironmentMissing: it needs a package that is not installed.
    """
    from fourlane.spec.expert_files import read_loads

    if source.endswith(".pt"):
        from fourlane.integrations.sglang import read_recorded_loads

        return {"mixed": read_recorded_loads(source)}
    if not source.startswith(("http://", "https://")):
        return read_loads(Path(source))
    return _loads_in(_fetch(source), source)


def _loads_in(answer: bytes, source: str) -> dict[str, LoadArrays]:
    """Read the loads a service answered with.

    Raises:
        SpecError: there are none, or there are none yet.
    """
    import msgspec

    from fourlane.spec.expert_files import read_loads

    try:
        told = msgspec.json.decode(answer)
    except msgspec.DecodeError as error:
        raise SpecError(f"{source}: expected expert loads as JSON, got {answer[:60]!r}") from error
    if isinstance(told, dict) and told.get("phases") == {}:
        raise SpecError(f"{source}: no expert has got a token yet; send the service requests first")
    with tempfile.TemporaryDirectory() as folder:
        fetched = Path(folder) / "load.json"
        fetched.write_bytes(answer)
        try:
            return read_loads(fetched)
        except SpecError as error:
            raise SpecError(*(fault.replace(str(fetched), source) for fault in error.faults)) from error


def _fetch(address: str) -> bytes:
    """Get the expert loads of a service.

    Raises:
        SpecError: it does not answer, or has no loads.
    """
    import httpx

    url = f"{address.rstrip('/').removesuffix('/experts/load')}/experts/load"
    try:
        answer = httpx.get(url, timeout=_PATIENCE_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise SpecError(f"{url}: expected a running service of fourlane, got no answer: {error}") from error
    if answer.status_code != httpx.codes.OK:
        found = answer.text[:200].strip()
        raise SpecError(f"{url}: expected expert loads, got status {answer.status_code}: {found}")
    return answer.content


def one_phase(source: str, phase: str | None) -> tuple[str, LoadArrays]:
    """Read the loads of one phase and its name.

    Raises:
        SpecError: the phase is not there, or there are several and none was chosen.
    """
    found = loads_of(source)
    if phase is None and len(found) > 1:
        choices = " or ".join(f"--phase {name}" for name in found)
        raise SpecError(f"--phase: {source} has loads of {', '.join(found)}, which differ; choose with {choices}")
    chosen = phase or next(iter(found))
    if chosen not in found:
        raise SpecError(f"--phase: expected one of {source}'s phases ({', '.join(found)}), got {chosen}")
    return chosen, found[chosen]


def with_load(load_WLE: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which layers got tokens; a model's dense layers, which some engines count, get none."""
    return load_WLE.sum(axis=(0, 2)) > 0


def placement_of(path: Path) -> Placement:
    """Read a placement file.

    Raises:
        SpecError: it is none.
    """
    from fourlane.errors import BalanceInputError
    from fourlane.policy.placement import Placement
    from fourlane.spec.expert_files import read_placement

    read = read_placement(path)
    try:
        return Placement(read.slot_of_LP, experts=read.experts, ranks=read.ranks)
    except BalanceInputError as error:
        raise SpecError(f"{path}: {error}") from error


def slots_of(experts: int, ranks: int, redundant: int) -> int:
    """Return the slots of a layer with so many redundant ones.

    Raises:
        SpecError: they do not give every rank equally many.
    """
    slots = experts + redundant
    if slots % ranks:
        near = max(slots // ranks, -(-experts // ranks)) * ranks - experts
        raise SpecError(
            f"--redundant: expected as many as give every one of {ranks} ranks equally many of the slots of {experts} "
            f"experts, such as {near} or {near + ranks}, got {redundant}"
        )
    return slots


def quantity(kind: type[Q], option: str, text: str | None) -> Q | None:
    """Read the quantity given to an option.

    Raises:
        SpecError: it is none.
    """
    try:
        return None if text is None else kind.parse(text)
    except ValueError as error:
        raise SpecError(f"{option}: {error}") from error


def show_json(data: object) -> None:
    """Print figures as JSON; arrays become lists."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(data, enc_hook=_plain), indent=2))


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
