"""One rank of vLLM's expert-parallel load balancer, on the CPU over gloo, around a model of numbered weights.

    python vllm_rank.py RANK WORLD STORE OUT

All of it is vLLM's own - `EplbState`, its communicator, the transfer of weights, the commit of the maps - but the
model, which holds one number an expert, and torch's events and streams, which a CPU does not have: the events
only take the time, and gloo's sends of tensors in memory wait for no stream.
Writes the maps and weights it ends with to OUT.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import torch
from vllm.config.parallel import EPLBConfig
from vllm.distributed import parallel_state
from vllm.distributed.eplb import eplb_state
from vllm.model_executor.models.interfaces import MixtureOfExperts
from vllm.plugins import load_general_plugins

LAYERS, EXPERTS, REDUNDANT, WINDOW = 3, 16, 8, 4


class Untimed:
    """In place of torch.Event."""

    def __init__(self, *, enable_timing: bool = False) -> None:
        """Take no time."""

    def record(self) -> None:
        """Do nothing."""

    def synchronize(self) -> None:
        """Do nothing."""

    def elapsed_time(self, _: Untimed) -> float:
        """Return no time."""
        return 0.0


class Layer:
    """A layer whose expert e has weights 1000 * layer + e."""

    def __init__(self, layer: int, held: list[int]) -> None:
        """Hold the experts named."""
        self.weight = torch.tensor([[1000.0 * layer + expert] * 2 for expert in held])
        self.eplb_state = eplb_state.EplbLayerState()

    def get_expert_weights(self) -> list[torch.Tensor]:
        """Return what is to be moved with an expert."""
        return [self.weight]

    def set_eplb_state(self, **given: object) -> None:
        """Keep the views that the router would read."""
        self.eplb_state.set_layer_state(**given)


class Model:
    """As much of a mixture of experts as the balancer looks at."""

    set_eplb_state = MixtureOfExperts.set_eplb_state

    def __init__(self, rank: int, world: int) -> None:
        """Hold this rank's slots of vLLM's first map."""
        first = eplb_state.EplbState.build_initial_global_physical_to_logical_map(EXPERTS, REDUNDANT)
        share = len(first) // world
        self.moe_layers = [Layer(layer, first[rank * share : (rank + 1) * share]) for layer in range(LAYERS)]
        self.num_moe_layers, self.num_expert_groups, self.num_shared_experts = LAYERS, 4, 0
        self.num_logical_experts = self.num_routed_experts = EXPERTS
        self.num_redundant_experts, self.num_physical_experts = REDUNDANT, len(first)
        self.num_local_physical_experts = share


def joined(rank: int, world: int, store: str) -> None:
    """Make vLLM's process groups over gloo."""
    parallel_state.init_distributed_environment(world, rank, f"file://{store}", rank, backend="gloo")
    for name in ("ep", "eplb"):
        group = parallel_state.init_model_parallel_group([list(range(world))], rank, "gloo", group_name=name)
        setattr(parallel_state, f"_{name.upper()}", group)


def state_of(model: Model) -> eplb_state.EplbState:
    """Return vLLM's state of a model, with the policy that its configuration names."""
    config = EPLBConfig(use_async=False, window_size=WINDOW, communicator="torch_gloo", num_redundant_experts=REDUNDANT)
    parallel = SimpleNamespace(eplb_config=config, enable_elastic_ep=False, num_ubatches=0)
    state = eplb_state.EplbState(parallel, torch.device("cpu"))
    state.add_model(model, SimpleNamespace(compute_hash=lambda: "model", model="numbers"))
    return state


def main(rank: int, world: int, store: str, out: str) -> None:
    """Rebalance twice, after a profiling run, under loads that differ, and write what came of it."""
    load_general_plugins()
    joined(rank, world, store)
    torch.Event = Untimed
    torch.accelerator.current_stream = lambda: SimpleNamespace(synchronize=lambda: None)
    model = Model(rank, world)
    state = state_of(model)
    kept = state.model_states["model"]
    state.rearrange(is_profile=True)
    seen = {"policy": np.array(state.policy.__name__)}
    for step in range(2):
        rng = np.random.default_rng([step, rank])
        load_WLP = rng.integers(0, 50, size=kept.expert_load_window.shape) ** 2
        kept.expert_load_window.copy_(torch.from_numpy(load_WLP))
        state.rearrange()
        seen[f"map{step}"] = kept.physical_to_logical_map.numpy().copy()
        seen[f"count{step}"] = kept.logical_replica_count.numpy().copy()
        seen[f"load{step}"] = kept.last_expert_load.numpy().copy()
        seen[f"weight{step}"] = np.stack([layer.weight.numpy()[:, 0] for layer in model.moe_layers])
    np.savez(out, **seen)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
