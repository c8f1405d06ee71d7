"""Load a spec from a TOML file and `--set path=value` overrides, reporting all faults at once."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from fourlane.errors import SpecError
from fourlane.spec.cluster import Cluster
from fourlane.spec.deployment import Deployment
from fourlane.spec.deployment_rules import cautions, deployment_faults
from fourlane.spec.reading import Fault, read_struct, shown
from fourlane.spec.twin import Twin
from fourlane.spec.writing import render

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from fourlane.spec.plan import PlanSpec

__all__ = [
    "cautions",
    "load",
    "load_cluster",
    "load_deployment",
    "load_plan_spec",
    "load_twin",
    "parse",
    "render",
    "twins",
]

S = TypeVar("S", bound=msgspec.Struct)
_CATALOG = Path(__file__).parent / "catalog"
_SUFFIXES = {".toml", ".json", ".npz", ".npy", ".safetensors"}
"""Of files that may stand where a name of a catalog may."""


def load(
    path: str | Path,
    kind: type[S],
    overrides: Sequence[str] = (),
    *,
    rules: Callable[[S], Iterable[Fault]] | None = None,
) -> S:
    """Read a TOML file as a struct of class `kind`.

    Args:
        path: the file.
        kind: a msgspec struct class.
        overrides: "path=value" texts; a value is TOML if it reads as TOML, else plain text, and
            nothing after "=" takes the key away.
        rules: yields what is wrong with a struct whose fields are well-formed.

    Raises:
        SpecError: with every fault of the file and the overrides.
    """
    return parse(_text_of(Path(path)), kind, overrides, source=Path(path).name, rules=rules)


def parse(
    text: str,
    kind: type[S],
    overrides: Sequence[str] = (),
    *,
    source: str,
    rules: Callable[[S], Iterable[Fault]] | None = None,
) -> S:
    """Read TOML text as a struct of class `kind`; `source` is what messages call it. Otherwise like `load`.

    Raises:
        SpecError: with every fault of the text and the overrides.
    """
    data = _parsed(text, source)
    changed = _apply(data, overrides)
    spec, faults = read_struct(kind, data)
    if rules is not None and spec is not None and not faults:
        faults = list(rules(spec))
    _refuse(faults, source, changed)
    return spec


def load_cluster(path: str | Path, *, overrides: Sequence[str] = ()) -> Cluster:
    """Read a cluster file; a bare name such as "h800-ft" is one of the catalog's.

    Raises:
        SpecError: with every fault of the file and the overrides.
    """
    from fourlane.spec.cluster_rules import cluster_faults

    return load(_file_of(path, "cluster"), Cluster, overrides, rules=cluster_faults)


def load_twin(path: str | Path, *, overrides: Sequence[str] = ()) -> Twin:
    """Read a twin file; a bare name such as "deepseek-h800" is one of the catalog's.

    Files that a twin names (model, cluster, hardware, lane plan, loads of experts, trace) are found beside it, those
    that an override names from the working folder.

    Raises:
        SpecError: with every fault of the file and the overrides.
    """
    from fourlane.spec.twin_rules import twin_faults

    return _load_named(path, "twin", Twin, overrides, twin_faults)


def load_plan_spec(path: str | Path, *, overrides: Sequence[str] = ()) -> PlanSpec:
    """Read what is to be planned; a bare name such as "deepseek-512" is one of the catalog's.

    Files that it names are found as those of a twin.

    Raises:
        SpecError: with every fault of the file and the overrides.
    """
    from fourlane.spec.plan import PlanSpec, plan_faults

    return _load_named(path, "plan", PlanSpec, overrides, plan_faults)


def _load_named(
    path: str | Path, what: str, kind: type[S], overrides: Sequence[str], rules: Callable[[S], Iterable[Fault]]
) -> S:
    """Read a file, or one of the catalog's, that names others, which are found beside it."""
    file = _file_of(path, what)
    data = _read_toml(file)
    _find_named(file, data)
    changed = _apply(data, overrides)
    spec, faults = read_struct(kind, data)
    if spec is not None:
        faults += _unrelated(rules(spec), faults)
    _refuse(faults, file.name, changed)
    return spec


def _find_named(file: Path, data: dict[str, Any]) -> None:
    """Make the files that a twin or a plan names relative to its own folder."""
    for key in ("model", "cluster", "hardware"):
        _find_beside(file, data, key, like_a_file=True)
    _find_beside(file, data.get("lanes"), "plan")
    _find_beside(file, data.get("experts"), "popularity", like_a_file=True)
    _find_beside(file, data.get("workload"), "trace")


def twins() -> list[str]:
    """Return the names of the catalog's twins."""
    return _catalog("twin")


def _file_of(path: str | Path, kind: str) -> Path:
    """Return the file that is meant: that of the path, or the catalog's of a bare name.

    Raises:
        SpecError: it is a bare name that the catalog does not have.
    """
    file = Path(path)
    if file.exists() or file.name != str(path) or file.suffix:
        return file
    known = _catalog(kind)
    if file.name not in known:
        close = difflib.get_close_matches(file.name, known, n=1)
        hint = f' (did you mean "{close[0]}"?)' if close else ""
        text = f"expected a {kind} file, or one of the catalog ({', '.join(known)}), found neither{hint}"
        raise SpecError(f"{file.name}: {text}")
    return _CATALOG / f"{kind}s" / f"{file.name}.toml"


def _catalog(kind: str) -> list[str]:
    return sorted(file.stem for file in (_CATALOG / f"{kind}s").glob("*.toml"))


def load_deployment(path: str | Path | None = None, *, overrides: Sequence[str] = ()) -> Deployment:
    """Read a deployment file; without one, the bundled model on one prefill and one decode rank.

    A bare name such as "two_by_two" is one of the catalog's. Without a file, pools that no override names are there by
    default: both of a split service, or none if an override names `unified`. A lane plan or placement that the file
    names is found beside the file, one that an override names from the working folder.

    Raises:
        SpecError: with every fault of the file and the overrides.
    """
    file = None if path is None else _file_of(path, "deployment")
    data: dict[str, Any] = {} if file is None else _read_toml(file)
    if file is not None:
        _find_beside(file, data, "lanes")
        _find_beside(file, data.get("balance"), "initial")
    changed = _apply(data, overrides)
    if file is None and "unified" not in data:
        for role in ("prefill", "decode"):
            data.setdefault(role, {})
    spec, faults = read_struct(Deployment, data)
    if spec is not None:
        faults += _unrelated(deployment_faults(spec), faults)
    _refuse(faults, "deployment" if file is None else file.name, changed)
    return spec


def _find_beside(path: Path, table: object, key: str, *, like_a_file: bool = False) -> None:
    """Make a file that a spec names relative to the spec's own folder, if it names one.

    With `like_a_file`, where names of a catalog may stand too: if it ends or begins as a file's, or is there.
    """
    if not isinstance(table, dict) or not isinstance(table.get(key), str) or not table[key]:
        return
    named, beside = table[key], path.parent / table[key]
    is_file = named.startswith(".") or Path(named).suffix in _SUFFIXES or ("/" in named and beside.exists())
    if is_file or not like_a_file:
        table[key] = str(beside)


def _read_toml(path: Path) -> dict[str, Any]:
    return _parsed(_text_of(path), path.name)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{path}: expected a readable TOML file: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path.name}: not valid TOML: {error}") from error


def _parsed(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{source}: not valid TOML: {error}") from error


def _apply(data: dict[str, Any], overrides: Iterable[str]) -> list[str]:
    """Change `data` as the overrides say and return the paths they name.

    Raises:
        SpecError: some are not of the form path=value.
    """
    wrong: list[str] = []
    changed: list[str] = []
    for override in overrides:
        place, equals, text = override.partition("=")
        parts = place.strip().split(".")
        if not equals or not all(parts):
            wrong.append(f'--set {override}: expected path=value such as "prefill.ranks=2"')
            continue
        table = data
        for depth, part in enumerate(parts[:-1]):
            inner = table.setdefault(part, {})
            if not isinstance(inner, dict):
                at = ".".join(parts[: depth + 1])
                wrong.append(f"--set {override}: {at} is {shown(inner)}, not a table, and has no {parts[depth + 1]}")
                break
            table = inner
        else:
            if text.strip():
                table[parts[-1]] = _value(text.strip())
            else:
                table.pop(parts[-1], None)
            changed.append(place.strip())
    if wrong:
        raise SpecError(*wrong)
    return changed


def _value(text: str) -> object:
    """Return a TOML value, or the text itself."""
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return found["value"] if found.keys() == {"value"} else text


def _unrelated(found: Iterable[Fault], known: Iterable[Fault]) -> list[Fault]:
    """Return the broken rules that do not just follow from a known fault in the same table (or pool)."""
    broken = {fault.place.partition(".")[0] for fault in known}
    if broken & {"prefill", "decode", "unified"}:
        broken.add("")
    return [fault for fault in found if fault.place.partition(".")[0] not in broken]


def _refuse(faults: Sequence[Fault], source: str, changed: Sequence[str]) -> None:
    """Raise a SpecError naming the file, or the override, each fault comes from."""
    if faults:
        raise SpecError(*(_sentence(fault, source, changed) for fault in faults))


def _sentence(fault: Fault, source: str, changed: Sequence[str]) -> str:
    overridden = any(fault.place == place or fault.place.startswith((f"{place}.", f"{place}[")) for place in changed)
    parts = ["--set" if overridden else source, fault.place, fault.message]
    return ": ".join(part for part in parts if part)
