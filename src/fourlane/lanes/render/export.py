"""The plan as JSON, and the JSON schema that says what such a file may hold.

The schema is published: `lane_plan.schema.json` beside this module, and in the reference of the
documentation. It holds a plan's form; what no schema can say is in `fourlane.lanes.rules`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import msgspec.inspect as kinds

from fourlane.lanes.plan import SCHEMA_VERSION, LanePlan
from fourlane.lanes.rules import MOST_PRIORITY, MOST_QUEUE
from fourlane.spec.traffic import MOST_DSCP, TrafficClass
from fourlane.units import Quantity

if TYPE_CHECKING:
    from fourlane.spec.cluster import Cluster

__all__ = ["SCHEMA_FILE", "plan_schema", "render_json"]

SCHEMA_FILE = Path(__file__).parent / "lane_plan.schema.json"
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_RANGES: dict[str, dict[str, dict[str, float]]] = {
    "Lane": {
        "dscp": {"minimum": 0, "maximum": MOST_DSCP},
        "priority": {"minimum": 0, "maximum": MOST_PRIORITY},
        "queue": {"minimum": 0, "maximum": MOST_QUEUE},
        "weight": {"minimum": 1, "maximum": 100},
        "cap": {"minimum": 1, "maximum": 100},
        "alpha": {"exclusiveMinimum": 0},
    },
    "Ecn": {"pmax": {"exclusiveMinimum": 0, "maximum": 1}},
    "Pfc": {"oversubscription": {"minimum": 1}},
}


def render_json(plan: LanePlan, cluster: Cluster) -> dict[str, str]:
    """Render the plan, and the schema it keeps to, as JSON."""
    del cluster
    return {"plan.json": _text(_plain(plan)), SCHEMA_FILE.name: SCHEMA_FILE.read_text(encoding="utf-8")}


def plan_schema() -> str:
    """Return the JSON schema of an exported plan, as it is published."""
    definitions: dict[str, Any] = {}
    _schema(kinds.type_info(LanePlan), definitions)
    plan = definitions.pop("LanePlan")
    plan["properties"]["version"] = {"const": SCHEMA_VERSION}
    plan["properties"]["classes"] = _classes()
    plan["required"] = ["version", "name", "classes"]
    return _text({"$schema": _DIALECT, "title": "fourlane lane plan", **plan, "$defs": definitions})


def _classes() -> dict[str, Any]:
    names = [kind.value for kind in TrafficClass]
    return {
        "type": "object",
        "properties": {name: {"$ref": "#/$defs/Lane"} for name in names},
        "required": names,
        "additionalProperties": False,
    }


_LEAVES = {
    kinds.BoolType: {"type": "boolean"},
    kinds.IntType: {"type": "integer"},
    kinds.FloatType: {"type": "number"},
    kinds.StrType: {"type": "string"},
}


def _schema(info: kinds.Type, definitions: dict[str, Any]) -> dict[str, Any]:  # noqa: PLR0911 - a case a kind
    """Describe a type; structs are described in `definitions` and referred to.

    `msgspec.json.schema` cannot do it: it stops at defaults that are quantities.
    """
    if isinstance(info, kinds.StructType):
        return _struct(info, definitions)
    if isinstance(info, kinds.CustomType):
        return _quantity(info.cls)
    if isinstance(info, kinds.LiteralType):
        return {"enum": list(info.values)}
    if isinstance(info, kinds.EnumType):
        return {"enum": [member.value for member in info.cls]}
    if isinstance(info, kinds.UnionType):
        there = [_schema(member, definitions) for member in info.types if not isinstance(member, kinds.NoneType)]
        return there[0] if len(there) == 1 else {"anyOf": there}
    if isinstance(info, kinds.VarTupleType):
        return {"type": "array", "items": _schema(info.item_type, definitions)}
    if isinstance(info, kinds.DictType):
        return {"type": "object", "additionalProperties": _schema(info.value_type, definitions)}
    return dict(_LEAVES[type(info)])  # type: ignore[index]


def _struct(info: kinds.StructType, definitions: dict[str, Any]) -> dict[str, Any]:
    name = info.cls.__name__
    limits = _RANGES.get(name, {})
    definitions[name] = {
        "type": "object",
        "properties": {
            field.encode_name: _schema(field.type, definitions) | limits.get(field.encode_name, {})
            for field in info.fields
        },
        "required": [field.encode_name for field in info.fields if field.required],
        "additionalProperties": False,
    }
    return {"$ref": f"#/$defs/{name}"}


def _quantity(kind: type) -> dict[str, Any]:
    """Describe a quantity: text with a unit, as `fourlane.units` writes it."""
    assert issubclass(kind, Quantity)
    units = "|".join(unit for unit, _ in kind.scale_of[: kind.written])
    return {"type": "string", "pattern": f"^[0-9]+({units})$", "examples": list(kind.examples)}


def _plain(value: Any) -> Any:
    """Return a struct as objects, arrays, text and numbers; fields that are None are left out."""
    if isinstance(value, msgspec.Struct):
        fields = ((field.encode_name, getattr(value, field.name)) for field in msgspec.structs.fields(value))
        return {name: _plain(item) for name, item in fields if item is not None}
    if isinstance(value, dict):
        return {key.value: _plain(item) for key, item in sorted(value.items(), key=_in_order)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, TrafficClass):
        return value.value
    return str(value) if isinstance(value, Quantity) else value


def _in_order(item: tuple[TrafficClass, Any]) -> int:
    return list(TrafficClass).index(item[0])


def _text(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
