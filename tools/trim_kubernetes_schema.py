"""Cut Kubernetes' JSON schemas down to the kinds that plans are rendered in, for the tests.

    python tools/trim_kubernetes_schema.py FOLDER VERSION > tests/golden/kubernetes/schema.json

FOLDER holds the strict schemas of one version, as the PyPI package kubernetes-validate brings them
(`kubernetes-json-schema/v1.37.0-local-strict`): `_definitions.json`, made from Kubernetes' OpenAPI document.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

KINDS = {
    "ConfigMap": "io.k8s.api.core.v1.ConfigMap",
    "Deployment": "io.k8s.api.apps.v1.Deployment",
    "Service": "io.k8s.api.core.v1.Service",
    "StatefulSet": "io.k8s.api.apps.v1.StatefulSet",
}
_REF = re.compile(r'"\$ref": "[^"]*#/\$defs/([^"]+)"')


def trimmed(value: Any) -> Any:
    """Return a schema without what only people read, references within one document."""
    if isinstance(value, dict):
        kept = {
            key: trimmed(item)
            for key, item in value.items()
            if not (key == "description" and isinstance(item, str)) and not key.startswith("x-kubernetes")
        }
        if isinstance(kept.get("$ref"), str):
            kept["$ref"] = "#/$defs/" + kept["$ref"].rpartition("/")[2]
        return kept
    return [trimmed(item) for item in value] if isinstance(value, list) else value


def main() -> None:
    """Read, follow references from the kinds, write."""
    folder, version = sys.argv[1:]
    everything = json.loads(Path(folder, "_definitions.json").read_text(encoding="utf-8"))["$defs"]
    wanted, found = list(KINDS.values()), {}
    while wanted:
        name = wanted.pop()
        if name not in found:
            found[name] = trimmed(everything[name])
            wanted += _REF.findall(json.dumps(found[name]))
    document = {
        "source": f"Kubernetes {version}, api/openapi-spec (Apache-2.0), strict, by kubernetes-validate (PyPI)",
        "kinds": KINDS,
        "$defs": dict(sorted(found.items())),
    }
    sys.stdout.write(json.dumps(document, separators=(",", ":"), sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
