"""Check config_db tables against SONiC's YANG models, which lie beside the repository where there are any.

The models are those of sonic-buildimage (src/sonic-yang-models); yangson reads them. config_db writes lists
as tables of entries, keys joined by "|" and every value as text; the models want lists, keys as leaves, and
numbers as numbers. A table, entry or field that the models do not know is an error.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MODELS = Path(__file__).parents[3] / "shared/data/sonic-yang"
_STANDARD = ("ietf-inet-types", "ietf-yang-types")
_STANDARD_REVISION = "2013-07-15"
_TEXT_FUNCTION = re.compile(r'must\s+"\(count\(\w+\[text\(\)[^;]*;')
_COMMA_TEXT = {"BUFFER_PORT_INGRESS_PROFILE_LIST", "BUFFER_PORT_EGRESS_PROFILE_LIST"}
"""Tables whose leaf-lists config_db keeps as text with commas."""


class YangError(Exception):
    """What the models refuse."""


class SonicYang:
    """The models, loaded once; `check` holds tables against them."""

    def __init__(self) -> None:
        yangson = pytest.importorskip("yangson", reason="yangson, which reads YANG models, is not installed")
        if not MODELS.is_dir():
            pytest.skip(f"SONiC's YANG models are not at {MODELS}")
        # yangson has no text(); the two statements that call it are about advertised speeds
        port = _TEXT_FUNCTION.sub("", (MODELS / "sonic-port.yang").read_text())
        with TemporaryDirectory() as scratch:
            (Path(scratch) / "sonic-port.yang").write_text(port)
            folders = (scratch, str(MODELS), str(MODELS / "ietf"))
            self.model = yangson.DataModel(json.dumps(_library()), folders)
        self.place_of_table = {
            table.name: (top, table) for top in self.model.schema.children for table in getattr(top, "children", [])
        }

    def check(self, config: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
        """Refuse tables that break the models.

        Raises:
            YangError: with the first thing found.
        """
        from yangson.enumerations import ContentType
        from yangson.exceptions import YangsonException

        data: dict[str, Any] = {}
        for name, table in config.items():
            if name not in self.place_of_table:
                raise YangError(f"{name}: no model has such a table")
            top, node = self.place_of_table[name]
            into = data.setdefault(f"{top.ns}:{top.name}", {})
            into[name] = _table(node, table)
        try:
            self.model.from_raw(data).validate(ctype=ContentType.config)
        except YangsonException as error:
            raise YangError(str(error)) from error


@cache
def sonic_yang() -> SonicYang:
    """Return the models; skip the test where they or their reader are not there."""
    return SonicYang()


def thinned(config: Mapping[str, Any], *, every: int = 1) -> dict[str, Any]:
    """Leave the first `every` ports of each speed: checking references takes time in the square of ports."""
    kept: set[str] = set()
    count: dict[str, int] = {}
    for name, entry in config["PORT"].items():
        count[entry["speed"]] = count.get(entry["speed"], 0) + 1
        if count[entry["speed"]] <= every:
            kept.add(name)
    dropped = config["PORT"].keys() - kept
    thin = {
        table: {key: entry for key, entry in entries.items() if key.partition("|")[0] not in dropped}
        for table, entries in config.items()
    }
    thin["CABLE_LENGTH"] = {
        name: {port: length for port, length in entry.items() if port in kept}
        for name, entry in config["CABLE_LENGTH"].items()
    }
    return thin


def _library() -> dict[str, Any]:
    modules = []
    for file in sorted(MODELS.glob("*.yang")) + [MODELS / f"ietf/{name}.yang" for name in _STANDARD]:
        text = file.read_text()
        revision = re.search(r"^\s*revision\s+\"?([0-9-]{10})", text, re.MULTILINE)
        namespace = re.search(r"^\s*namespace\s+\"?([^\"\s;]+)", text, re.MULTILINE)
        assert namespace is not None
        modules.append(
            {
                "name": file.stem,
                "revision": _STANDARD_REVISION if file.stem in _STANDARD else revision[1] if revision else "",
                "namespace": namespace[1],
                "conformance-type": "import" if file.stem in _STANDARD else "implement",
            }
        )
    return {"ietf-yang-library:modules-state": {"module-set-id": "sonic", "module": modules}}


def _children(node: Any, kind: str) -> list[Any]:
    return [child for child in node.children if type(child).__name__ == kind]


def _table(node: Any, table: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    containers = {child.name: child for child in _children(node, "ContainerNode")}
    for key, entry in table.items():
        if key in containers:
            data[key] = _fields(node.name, containers[key], entry)
            continue
        parts = key.split("|")
        lists = [child for child in _children(node, "ListNode") if len(child.keys) == len(parts)]
        if not lists:
            raise YangError(f"{node.name}|{key}: no list has {len(parts)} keys")
        keys = {name: part for (name, _), part in zip(lists[0].keys, parts, strict=True)}
        data.setdefault(lists[0].name, []).append(_row(node.name, lists[0], keys, entry))
    return data


def _row(table: str, node: Any, keys: dict[str, str], entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a list's entry; a table such as DSCP_TO_TC_MAP holds pairs, which are a list inside it."""
    inner = _children(node, "ListNode")
    if not inner:
        return _fields(table, node, {**keys, **entry})
    key, value = (leaf.name for leaf in _children(inner[0], "LeafNode"))
    pairs = [_fields(table, inner[0], {key: left, value: right}) for left, right in entry.items()]
    return {**_fields(table, node, keys), inner[0].name: pairs}


def _fields(table: str, node: Any, entry: Mapping[str, Any]) -> dict[str, Any]:
    leaves = {leaf.name: leaf for leaf in _leaves(node)}
    unknown = sorted(entry.keys() - leaves.keys())
    if unknown:
        raise YangError(f"{table}: no model has the field {', '.join(unknown)}")
    return {name: _value(f"{table}: {name}", leaves[name], value) for name, value in entry.items()}


def _leaves(node: Any) -> Iterator[Any]:
    for child in node.children:
        if type(child).__name__ in {"ChoiceNode", "CaseNode"}:
            yield from _leaves(child)
        elif type(child).__name__ in {"LeafNode", "LeafListNode"}:
            yield child


def _value(place: str, leaf: Any, value: Any) -> Any:
    if type(leaf).__name__ == "LeafListNode":
        if isinstance(value, str) and place.partition(":")[0] in _COMMA_TEXT:
            value = value.split(",")
        if not isinstance(value, list):
            raise YangError(f"{place}: expected a list")
        return [_scalar(place, leaf, item) for item in value]
    return _scalar(place, leaf, value)


def _scalar(place: str, leaf: Any, text: Any) -> Any:
    if not isinstance(text, str):
        raise YangError(f"{place}: expected text, got {text!r}")
    value = leaf.type.parse_value(text)
    if value is None:
        raise YangError(f'{place}: "{text}" is no {leaf.type}')
    return leaf.type.to_raw(value)
