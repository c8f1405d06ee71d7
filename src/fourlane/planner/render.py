"""Render a plan's row: launch files, the lane plan they go by, what switches and NICs are told, a benchmark, a page.

Not for writing them (`fourlane.lanes.render.folder`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec

from fourlane.errors import CheckFailed
from fourlane.lanes.check import check_plan, errors_of
from fourlane.lanes.render import TARGETS as LANE_TARGETS
from fourlane.lanes.render import render as render_lanes
from fourlane.planner.engines import ENGINES, commands_of
from fourlane.planner.engines.common import own_benchmark
from fourlane.planner.engines.flags import flag_faults, flag_table
from fourlane.planner.launch import PHASES, Launch, lay_out
from fourlane.planner.readme import readme
from fourlane.planner.targets import files_of
from fourlane.planner.targets.shell import scripts_of
from fourlane.spec.architecture_file import load_architecture
from fourlane.spec.hardware import gpu_models
from fourlane.spec.load import load_cluster
from fourlane.spec.traffic import TrafficClass
from fourlane.spec.writing import render as as_toml
from fourlane.twin.exchange.lanes import lanes_case
from fourlane.twin.memory import memory_use

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fourlane.lanes.plan import Carrier, LanePlan
    from fourlane.planner.launch import Commands, Connector
    from fourlane.spec.architecture import Architecture
    from fourlane.spec.cluster import Cluster
    from fourlane.spec.twin import Twin
    from fourlane.twin.memory import MemoryUse
    from fourlane.twin.times import Phase

__all__ = ["Choices", "Rendered", "render_launch"]

_LANES_TOML = "lanes/lanes.toml"
_ENVIRONMENTS = ("lanes/env/prefill/", "lanes/env/decode/")
_REPOSITORIES = {
    "deepseek-r1": "deepseek-ai/DeepSeek-R1",
    "deepseek-v3": "deepseek-ai/DeepSeek-V3",
    "kimi-k2": "moonshotai/Kimi-K2-Instruct",
    "mixtral-8x22b": "mistralai/Mixtral-8x22B-Instruct-v0.1",
    "qwen3-235b-a22b": "Qwen/Qwen3-235B-A22B",
    "qwen3-30b-a3b": "Qwen/Qwen3-30B-A3B",
}
"""Where the checkpoints of the catalog's models are found on Hugging Face."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What a plan leaves open.

    Args:
        engine: a name of `planner.engines.ENGINES`.
        target: a name of `planner.targets.TARGETS`.
        model: what the engine loads; None: the checkpoint of the plan's model.
        connector: what moves KV cache; None: what the engine usually takes.
        balancer: who places experts in other engines.
        image: of containers; None: the engine's own.
    """

    engine: str
    target: str
    model: str | None = None
    connector: Connector | None = None
    balancer: Literal["engine", "fourlane"] = "engine"
    image: str | None = None


@dataclass(frozen=True, slots=True)
class Rendered:
    """What was rendered.

    Args:
        files: text by relative path.
        scripts: what every target runs, and what that reads, by relative path.
        notes: what a person must know.
        commands: what the engine runs.
        launch: for what.
    """

    files: dict[str, str]
    scripts: dict[str, str]
    notes: tuple[str, ...]
    commands: Commands
    launch: Launch


def render_launch(twin: Twin, choices: Choices, *, expected: Mapping[str, str] | None = None) -> Rendered:
    """Render everything that launches a twin's service.

    Args:
        twin: what is to run.
        choices: on which engine, and what else a plan leaves open.
        expected: what the plan expects of it, figures by name, for the page.

    Raises:
        SpecError: the engine cannot do it, it does not fit the cluster, or its lanes cannot be had.
        CheckFailed: the lane plan has errors.
    """
    cluster, architecture = _cluster(twin), load_architecture(twin.model)
    launch = _launch(twin, cluster, architecture, choices)
    commands = commands_of(launch, choices.engine)
    plan = _with_carriers(launch.plan, commands.carriers)
    _prove(plan, cluster)
    benchmarks = {"benchmark.sh": commands.benchmark}
    if choices.engine != "fourlane":
        _check_flags(choices.engine, commands)
    if choices.engine != "fourlane" and commands.token_ids:
        benchmarks["benchmark-fourlane.sh"] = own_benchmark(launch)
    lanes = {
        f"lanes/{path}": text for target in LANE_TARGETS for path, text in render_lanes(plan, cluster, target).items()
    }
    lanes[_LANES_TOML] = as_toml(plan)
    environment = {path: text for path, text in lanes.items() if path.startswith(_ENVIRONMENTS)}
    shared = {
        **scripts_of(launch, commands, tuple(environment), benchmarks),
        **environment,
        **commands.files,
        _LANES_TOML: lanes[_LANES_TOML],
    }
    files = files_of(launch, commands, shared, choices.target, choices.image or commands.image)
    files |= {**lanes, "twin.toml": as_toml(twin)}
    notes = (*commands.notes, *_lane_notes(twin))
    files["README.md"] = readme(launch, commands, target=choices.target, notes=notes, expected=expected or {})
    return Rendered(files, shared, notes, commands, launch)


def _cluster(twin: Twin) -> Cluster:
    """Return the twin's cluster; without its DCN where KV cache shares the HPN, so that the plan leaves it alone."""
    cluster = load_cluster(twin.cluster)
    if twin.lanes.kv == "hpn" and twin.lanes.plan is None:
        return msgspec.structs.replace(cluster, dcn=None)
    return cluster


def _checkpoint(twin: Twin, engine: str) -> str:
    """Return what an engine loads unless told otherwise."""
    name = _REPOSITORIES.get(twin.model, twin.model)
    if engine == "fourlane" and twin.model in _REPOSITORIES:  # which loads folders alone
        return f"/models/{name.rpartition('/')[2]}"
    return name


def _launch(twin: Twin, cluster: Cluster, architecture: Architecture, choices: Choices) -> Launch:
    return Launch(
        twin=twin,
        cluster=cluster,
        architecture=architecture,
        plan=_plan(twin, cluster),
        model=choices.model or _checkpoint(twin, choices.engine),
        layouts=lay_out(twin, cluster),
        memory=_memory(twin, cluster, architecture),
        connector=choices.connector or ENGINES[choices.engine].connector,
        balancer=choices.balancer,
    )


def _plan(twin: Twin, cluster: Cluster) -> LanePlan:
    """Return the twin's lanes as a plan that devices can be told."""
    case = lanes_case(twin.lanes, cluster)
    assert case.plan is not None  # a cluster has one
    lane = case.plan.classes[TrafficClass.EXPERT]
    marking = lane.marking or case.plan.classes[TrafficClass.COLLECTIVE].ecn
    changed = msgspec.structs.replace(
        lane,
        routing="ecmp" if case.routing == "ecmp" else "adaptive",
        ecn=marking if case.ecn else "off",
    )
    return msgspec.structs.replace(case.plan, classes={**case.plan.classes, TrafficClass.EXPERT: changed})


def _with_carriers(plan: LanePlan, carriers: tuple[tuple[Carrier, ...], tuple[Carrier, ...]]) -> LanePlan:
    """Return the plan with the libraries that the engine uses, so that their environment is the right one."""
    kinds = (TrafficClass.EXPERT, TrafficClass.KV)
    changed = {
        kind: msgspec.structs.replace(plan.classes[kind], carriers=names)
        for kind, names in zip(kinds, carriers, strict=True)
    }
    return msgspec.structs.replace(plan, classes={**plan.classes, **changed})


def _prove(plan: LanePlan, cluster: Cluster) -> None:
    errors = errors_of(check_plan(plan, cluster))
    if errors:
        raise CheckFailed("\n".join(map(str, errors)))


def _lane_notes(twin: Twin) -> Iterator[str]:
    if twin.lanes.expert_queue == "shared":
        yield "The twin puts experts in a queue with everything else; the lane plan gives them their own all the same."
    if twin.lanes.routing == "spray":
        yield "The twin sprays packets over all paths; switches are told to route expert traffic adaptively."


def _check_flags(engine: str, commands: Commands) -> None:
    """See that what this package writes are options that the engine's programs have."""
    programs = flag_table(engine).programs
    named = [("server", command) for command in commands.phases.values()]
    named += [("router", commands.router), ("benchmark", commands.benchmark)]
    faults = [fault for program, command in named for fault in flag_faults(command, programs[program])]
    assert not faults, faults


def _memory(twin: Twin, cluster: Cluster, architecture: Architecture) -> dict[Phase, MemoryUse | None]:
    gpu = twin.hardware or cluster.gpu
    if gpu not in gpu_models():
        return dict.fromkeys(PHASES)
    return {
        phase: memory_use(
            architecture, gpu, twin.pools()[phase], twin.assumptions, block_size=twin.block_size, place=phase
        )
        for phase in PHASES
    }
