"""Launch files for Kubernetes: a StatefulSet and a headless Service a phase, what takes requests, ConfigMaps.

Plain resources alone, so that no operator need be installed: pod n of a phase is server n mod s of its unit n / s,
where a unit takes s servers. Pods use the hosts' networks, whose lanes the plan is about.

Source: the schemas of Kubernetes 1.37; `apps.kubernetes.io/pod-index` is there from 1.28 on.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import TYPE_CHECKING, Any

from fourlane.planner.launch import PHASES
from fourlane.planner.targets.shell import comment, layout_lines, quoted
from fourlane.planner.targets.yaml import documents

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fourlane.planner.launch import Commands, Launch, PoolLayout
    from fourlane.twin.times import Phase

__all__ = ["render"]

_FOLDER = "/fourlane"
_SECRET = "fourlane-secret"  # noqa: S105 - a resource's name
_RDMA = "rdma/hca_shared_devices_a"
"""What the RDMA shared device plugin calls its resource unless it is told otherwise."""


def render(launch: Launch, commands: Commands, scripts: Mapping[str, str], image: str) -> dict[str, str]:
    """Return manifests, numbered in the order in which they are to be applied."""
    name = _name(launch.twin.name)
    contents = {**scripts, "pod.sh": _pod_script(launch, commands, name)}
    keys = {path: path.replace("/", ".") for path in contents}
    benchmarks = {path for path in scripts if path.startswith("benchmark")}
    volumes = _volumes(name, keys, secret=commands.secret)
    units: list[dict[str, Any]] = []
    for phase in PHASES:
        units += [_headless(name, phase, launch, commands), _pods(name, phase, launch, commands, image, volumes)]
    head = comment(f"{commands.engine}, {launch.twin.name}. kubectl apply -f . applies all of them.") + "\n"
    return {
        "10-config.yaml": documents([_config(name, keys, contents)], head=head),
        "20-units.yaml": documents(units, head=head),
        "30-router.yaml": documents(_router(name, launch, commands, image, volumes), head=head),
        **{path: scripts[path] for path in sorted(benchmarks)},
    }


def _name(text: str) -> str:
    """Return a name that Kubernetes takes, short enough for what is appended."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-") or "fourlane"


def _labels(name: str, part: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": name, "app.kubernetes.io/component": part}


def _resource(kind: str, version: str, name: str, part: str, **content: Any) -> dict[str, Any]:
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": {"name": name, "labels": _labels(name.removesuffix(f"-{part}"), part)},
        **content,
    }


def _config(name: str, keys: Mapping[str, str], contents: Mapping[str, str]) -> dict[str, Any]:
    made = _resource("ConfigMap", "v1", f"{name}-files", "files")
    return {**made, "data": {keys[path]: contents[path] for path in sorted(contents)}}


def _volumes(name: str, keys: Mapping[str, str], *, secret: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the volumes of a pod, and where its container has them."""
    items = [{"key": keys[path], "path": path} for path in sorted(keys)]
    sources: list[dict[str, Any]] = [{"configMap": {"name": f"{name}-files", "items": items}}]
    if secret:
        key = "fourlane.secret"
        sources.append({"secret": {"name": _SECRET, "items": [{"key": key, "path": key, "mode": 0o400}]}})
    volumes: list[dict[str, Any]] = [
        {"name": "files", "projected": {"defaultMode": 0o755, "sources": sources}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "64Gi"}},
        {"name": "models", "hostPath": {"path": "/models", "type": "DirectoryOrCreate"}},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "files", "mountPath": _FOLDER},
        {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108 - the container's own
        {"name": "models", "mountPath": "/models"},
    ]
    return volumes, mounts


def _headless(name: str, phase: Phase, launch: Launch, commands: Commands) -> dict[str, Any]:
    """Give every pod of a phase a name of its own, before it is ready: units meet by them."""
    spec: dict[str, Any] = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": _labels(name, phase),
    }
    if commands.ports is not None and launch.layouts[phase].per_server == 1:
        spec["ports"] = [{"name": "http", "port": commands.ports[phase]}]
    return _resource("Service", "v1", f"{name}-{phase}", phase, spec=spec)


def _pods(
    name: str,
    phase: Phase,
    launch: Launch,
    commands: Commands,
    image: str,
    volumes: tuple[list[dict[str, Any]], list[dict[str, Any]]],
) -> dict[str, Any]:
    layout = launch.layouts[phase]
    labels = _labels(name, phase)
    container = _container(phase, launch, image, volumes[1], gpus=layout.gpus if launch.gpu else 0)
    if commands.ports is not None:
        container |= _probes(commands.ports[phase], layout, heads=commands.endpoints == "heads")
    pod = {
        **_host_pod(volumes[0]),
        "terminationGracePeriodSeconds": 60,
        "containers": [container],
    }
    if layout.per_server == 1:
        pod["affinity"] = _apart(labels)
    spec = {
        "serviceName": f"{name}-{phase}",
        "replicas": layout.units * layout.servers,
        "podManagementPolicy": "Parallel",
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    return _resource("StatefulSet", "apps/v1", f"{name}-{phase}", phase, spec=spec)


def _host_pod(volumes: list[dict[str, Any]]) -> dict[str, Any]:
    return {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet", "volumes": volumes}


def _apart(labels: dict[str, str]) -> dict[str, Any]:
    """Keep pods that take whole servers on servers of their own."""
    term = {"labelSelector": {"matchLabels": labels}, "topologyKey": "kubernetes.io/hostname"}
    return {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


def _container(part: str, launch: Launch, image: str, mounts: list[dict[str, Any]], *, gpus: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": part,
        "image": image,
        "command": ["bash", f"{_FOLDER}/pod.sh", part],
        "env": [
            {"name": "HOST", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {
                "name": "POD_INDEX",
                "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['apps.kubernetes.io/pod-index']"}},
            },
            {"name": "HF_HOME", "value": "/models/huggingface"},
        ],
        "volumeMounts": mounts,
    }
    if gpus:
        limits: dict[str, Any] = {"nvidia.com/gpu": gpus}
        if launch.cluster.hpn.devices:
            limits[_RDMA] = 1
            found["securityContext"] = {"capabilities": {"add": ["IPC_LOCK"]}}
        found["resources"] = {"limits": limits}
    return found


def _probes(port: int, layout: PoolLayout, *, heads: bool) -> dict[str, Any]:
    """Ask endpoints whether they answer; on servers of a unit that answer no HTTP, nothing is asked."""
    slot = " + POD_INDEX" if layout.per_server > 1 else ""
    ask = f"curl -sf http://$HOST:$(({port}{slot}))/health"
    if heads and layout.servers > 1:
        ask = f"[ $((POD_INDEX % {layout.servers})) -ne 0 ] || {ask}"
    test = {"exec": {"command": ["bash", "-c", ask]}, "timeoutSeconds": 10}
    return {
        "startupProbe": {**test, "periodSeconds": 30, "failureThreshold": 120},
        "readinessProbe": {**test, "periodSeconds": 10, "failureThreshold": 3},
    }


def _router(
    name: str,
    launch: Launch,
    commands: Commands,
    image: str,
    volumes: tuple[list[dict[str, Any]], list[dict[str, Any]]],
) -> list[dict[str, Any]]:
    labels = _labels(name, "router")
    container = _container("router", launch, image, volumes[1], gpus=0)
    container["env"] = [entry for entry in container["env"] if entry["name"] != "POD_INDEX"]
    container["ports"] = [{"name": "http", "containerPort": commands.router_port}]
    pod = {**_host_pod(volumes[0]), "containers": [container]}
    spec = {
        "replicas": 1,
        "strategy": {"type": "Recreate"},
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    ports = [{"name": "http", "port": commands.router_port}]
    service = {"selector": labels, "ports": [{**ports[0], "targetPort": "http"}]}
    if commands.ports is None:  # ranks look for the gateway, before it is ready
        service = {"selector": labels, "clusterIP": "None", "publishNotReadyAddresses": True, "ports": ports}
    return [
        _resource("Service", "v1", f"{name}-router", "router", spec=service),
        _resource("Deployment", "apps/v1", f"{name}-router", "router", spec=spec),
    ]


def _pod_script(launch: Launch, commands: Commands, name: str) -> str:
    """Write what every pod begins with: it works out where it is, then becomes its part."""
    lines = [
        "#!/usr/bin/env bash",
        comment("What every pod begins with: ./pod.sh prefill|decode|router. Pods are numbered unit by unit."),
        "set -euo pipefail",
        f"MODEL=${{MODEL:-{quoted(launch.model)}}}",
        f"service={name}",
        f"endpoints={commands.endpoints}  # which servers of a unit answer HTTP",
        *layout_lines(launch, PHASES),
    ]
    text = resources.files("fourlane.planner").joinpath("files", "pod.sh").read_text(encoding="utf-8")
    return "\n".join(lines) + "\n" + text
