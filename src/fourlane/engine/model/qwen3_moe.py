"""The causal language models `Qwen3MoeForCausalLM` and `Qwen2MoeForCausalLM`: loading one, and its forward pass.

On CPU rows are computed in float32 (KV too) with float32 or bfloat16 weights in native kernels; on
CUDA in the type of the weights, in PyTorch. The forward pass is a generator: it yields every
`Pending` of the exchange and is sent its result, and `TURN` where it needs nothing but another stream
may go on; it knows nothing of how they are waited for.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody reads

from fourlane.engine.exchange.contract import MIDWAY, TURN
from fourlane.engine.kv_transfer.contract import KvGeometry
from fourlane.engine.model.attention import Attention, AttentionBackend, NativeAttention, Rope, TorchAttention
from fourlane.engine.model.checkpoint import Checkpoint
from fourlane.engine.model.config import read_config, resolve_model_path
from fourlane.engine.model.memory import memory_budget
from fourlane.engine.model.moe import cut_rows
from fourlane.engine.model.weights import WeightReader, held_dtype
from fourlane.policy.stages import model_stages

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from fourlane.engine.batch import StepBatch
    from fourlane.engine.exchange.contract import Exchange, Pending
    from fourlane.engine.model.config import ModelConfig
    from fourlane.engine.model.linear import RmsNorm
    from fourlane.engine.model.moe import Mlp, MovableExperts, Router, SharedExpert
    from fourlane.engine.model.weights import Kernels
    from fourlane.policy.placement import Placement
    from fourlane.policy.stages import Stage

__all__ = ["CausalLM", "MoeBlock", "load_model"]

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class MoeBlock:
    """A layer's router, the experts this rank holds, and the shared one; `index` counts the layers that have experts.

    `experts` may be replaced between two steps, together with the layer's row of the placement.
    """

    index: int
    router: Router
    experts: MovableExperts
    shared: SharedExpert | None = None


@dataclass(frozen=True, slots=True)
class _Layer:
    attention_norm: RmsNorm
    attention: Attention
    mlp_norm: RmsNorm
    mlp: MoeBlock | Mlp


class CausalLM:
    """A model as one rank of an expert-parallel group holds it.

    Everything but the routed experts is whole on every rank.
    """

    def __init__(self, reader: WeightReader, placement: Placement, rank: int, attention: AttentionBackend) -> None:
        """Read this rank's weights. Use `load_model`."""
        self.config = config = reader.config
        self.device = reader.device
        self.dtype = reader.activations
        self._embedding_VD = reader.matrix("model.embed_tokens.weight")
        self._rope = Rope.of(config.rope_theta, config.head_dim, reader.device)
        self._layers = [_layer(reader, layer, placement, rank) for layer in range(config.layers)]
        self.moe_blocks = [layer.mlp for layer in self._layers if isinstance(layer.mlp, MoeBlock)]
        self._norm = reader.norm("model.norm.weight")
        self._head = reader.output_head(self._embedding_VD)
        self._attention = attention
        self.weights_bytes = reader.bytes_held
        self._reopen = reader.recipe()

    def read_experts(
        self, placement: Placement, rank: int, layers: Sequence[int]
    ) -> Iterator[tuple[int, MovableExperts]]:
        """Read a rank's experts of some layers from the checkpoint anew, as a placement has them.

        Args:
            placement: where experts live.
            rank: in the group.
            layers: counted among the layers with experts.

        Yields:
            Each layer and its experts.
        """
        reader = self._reopen()
        for layer in layers:
            yield layer, reader.experts(self.config.moe_layers[layer], placement.experts_of(rank, layer).tolist())

    def kv_geometry(self, blocks: int, block_size: int) -> KvGeometry:
        """Return the shape of a paged KV cache for this model."""
        config = self.config
        return KvGeometry(
            layers=config.layers,
            blocks=blocks,
            block_size=block_size,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            dtype=str(self.dtype).removeprefix("torch."),
        )

    def stages(self, *, cut_experts: bool = False) -> tuple[Stage, ...]:
        """Return the stages of `forward`: one for each time it yields, and the last.

        Args:
            cut_experts: as the batch asks for it.
        """
        config = self.config
        moe = [config.is_moe(layer) for layer in range(config.layers)]
        return model_stages(moe, shared=config.shared_expert_dim > 0, cut_experts=cut_experts)

    def forward(
        self, batch: StepBatch, kv_LQBShd: Tensor, exchange: Exchange, placement: Placement
    ) -> Generator[Pending[Any], Any, Tensor]:
        """Compute one step; run it with an executor.

        It yields in every layer: `TURN` between the two parts of attention; then the dispatch and the combine where
        the layer has experts, `TURN` again where it has none; and `MIDWAY` amid experts that the batch wants cut. See
        `stages`.

        Every rank of the group runs it in every step, with T = 0 too: the exchange needs all.

        Args:
            batch: the step's tokens.
            kv_LQBShd: the cache, [layers, 2 (K, V), blocks, block_size, kv heads, head dim].
            exchange: takes rows to experts and back.
            placement: where the group's experts live; this rank holds what it says.

        Returns:
            Logits of `batch.logit_row_N`, float32 [N, vocabulary].
        """
        x_TD = F.embedding(batch.token_ids_T, self._embedding_VD).to(self.dtype)
        angles = self._rope.at(batch.position_T, self.dtype)
        attend = self._attention.prepare(batch, kv_LQBShd.shape[3])
        for layer, kv_QBShd in zip(self._layers, kv_LQBShd.unbind(0), strict=True):
            q_THd = layer.attention.project(layer.attention_norm(x_TD), angles, batch, kv_QBShd)
            yield TURN
            x_TD += layer.attention.attend(q_THd, kv_QBShd, attend)
            h_TD = layer.mlp_norm(x_TD)
            block = layer.mlp
            if isinstance(block, MoeBlock):
                topk_TK, weights_TK = block.router(h_TD)
                pending = exchange.dispatch(h_TD, topk_TK, weights_TK, placement, layer=block.index)
                if block.shared is not None:
                    block.shared.add_to(x_TD, h_TD)  # while rows are on their way
                received = yield pending
                if batch.cut_experts:
                    first, second = cut_rows(received.x_RD, received.offset_S1)
                    y_ND = block.experts(*first)
                    yield MIDWAY
                    y_RD = torch.cat((y_ND, block.experts(*second)))
                else:
                    y_RD = block.experts(received.x_RD, received.offset_S1)
                x_TD += yield exchange.combine(y_RD, received)
            else:
                x_TD += block(h_TD)
                yield TURN
        return self._head(self._norm(x_TD[batch.logit_row_N])).float()


def load_model(  # noqa: PLR0913 - all but the path are keywords, each a choice of its own
    path: str | Path,
    *,
    device: str | torch.device,
    weights: Literal["auto", "float32", "bfloat16"] = "auto",
    placement: Placement,
    rank: int,
    kv_memory: int = 0,
    chunk_tokens: int = 512,
    spare_layers: int = 0,
    kernels: Kernels | None = None,
) -> CausalLM:
    """Load what one rank of an expert-parallel group computes with.

    Args:
        path: a checkpoint folder, or "bundled".
        weights: the type to hold weights in; "auto" keeps the checkpoint's.
        placement: which experts live where; its layers are the model's layers with experts.
        rank: in the group, 0 to `placement.ranks` - 1.
        kv_memory: bytes that KV pages will take, for the memory budget.
        chunk_tokens: most tokens of a step, for the memory budget.
        spare_layers: layers whose experts are held twice while they move, for the memory budget.
        kernels: None: native on CPU, PyTorch on CUDA.

    Raises:
        CheckpointError: files or tensors are missing or wrong.
        UnsupportedModel: another architecture, or an option that is not implemented.
        MemoryShortage: it does not fit; nothing has been read then.
        ValueError: the placement is not one for this model.
    """
    began = time.monotonic()
    device = torch.device(device)
    folder = resolve_model_path(path)
    config = read_config(folder)
    _check_placement(config, placement, rank)
    checkpoint = Checkpoint(folder, config)
    held = held_dtype(weights, checkpoint.stored_dtype)
    budget = memory_budget(
        config,
        placement,
        rank,
        weights=held,
        device=device,
        kv_memory=kv_memory,
        chunk_tokens=chunk_tokens,
        spare_layers=spare_layers,
    )
    for line in budget.lines():
        _log.info("memory: %s", line)
    budget.check(f"{folder} on {device}")
    reader = WeightReader(
        checkpoint=checkpoint,
        config=config,
        device=device,
        weights=held,
        activations=torch.float32 if device.type == "cpu" else held,
        kernels=kernels or ("native" if device.type == "cpu" else "torch"),
    )
    with torch.no_grad():
        attention = NativeAttention() if reader.kernels == "native" else TorchAttention()
        model = CausalLM(reader, placement, rank, attention)
    _log.info(
        "loaded %s in %.2f s: %.1f MB read, %.1f MB held as %s",
        folder, time.monotonic() - began, checkpoint.bytes_read / 1e6, reader.bytes_held / 1e6, held,
    )  # fmt: skip
    return model


def _layer(reader: WeightReader, layer: int, placement: Placement, rank: int) -> _Layer:
    config = reader.config
    prefix = f"model.layers.{layer}."
    attention = f"{prefix}self_attn."
    if config.is_moe(layer):
        index = config.moe_layers.index(layer)
        mlp = MoeBlock(
            index,
            reader.router(f"{prefix}mlp.gate.weight"),
            reader.experts(layer, placement.experts_of(rank, index).tolist()),
            reader.shared_expert(f"{prefix}mlp."),
        )
    else:
        mlp = reader.mlp(f"{prefix}mlp.", config.dense_dim)
    return _Layer(
        attention_norm=reader.norm(f"{prefix}input_layernorm.weight"),
        attention=Attention(
            layer=layer,
            qkv=reader.linear(*(f"{attention}{name}_proj" for name in "qkv"), bias=config.qkv_bias),
            heads=reader.heads(f"{attention}q_norm.weight", f"{attention}k_norm.weight"),
            out=reader.linear(f"{attention}o_proj", bias=config.output_bias),
        ),
        mlp_norm=reader.norm(f"{prefix}post_attention_layernorm.weight"),
        mlp=mlp,
    )


def _check_placement(config: ModelConfig, placement: Placement, rank: int) -> None:
    found = (placement.layers, placement.experts)
    expected = (len(config.moe_layers), config.experts)
    if found != expected:
        raise ValueError(f"placement: expected (layers with experts, experts) = {expected}, got {found}")
    if not 0 <= rank < placement.ranks:
        raise ValueError(f"rank: expected 0 to {placement.ranks - 1}, got {rank}")
