"""Record which experts the bundled model's tokens choose while it reads real text: Python's own reference."""

from __future__ import annotations

from pydoc_data.topics import topics
from typing import TYPE_CHECKING

import numpy as np
import torch
from expert_cases import BUNDLED
from tokenizers import Tokenizer

from fourlane.engine.batch import StepBatch
from fourlane.engine.exchange.local import LocalExchange
from fourlane.engine.executor import run_single_stream
from fourlane.engine.model.config import read_config
from fourlane.engine.model.qwen3_moe import load_model
from fourlane.policy.placement import Placement, linear_placement

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from fourlane.engine.exchange.contract import Pending, Received

__all__ = ["record_routing"]

DOCUMENT, PAGE = 512, 64  # tokens that see each other, tokens a KV page


class _Recorder(LocalExchange):
    """A local exchange that keeps what each layer's router chose."""

    def __init__(self, placement: Placement) -> None:
        super().__init__(placement)
        self.chosen: list[list[NDArray[np.int64]]] = [[] for _ in range(placement.layers)]

    def dispatch(
        self,
        x_TD: Tensor,
        topk_TK: Tensor,
        weights_TK: Tensor,
        placement: Placement,
        *,
        layer: int,
        decode_rows: Tensor | None = None,
    ) -> Pending[Received]:
        """Keep the choices, then do as a local exchange does."""
        self.chosen[layer].append(topk_TK.numpy().copy())
        return super().dispatch(x_TD, topk_TK, weights_TK, placement, layer=layer, decode_rows=decode_rows)


def record_routing(tokens: int = 1 << 15) -> NDArray[np.int64]:
    """Return the experts each token of the text chose, [layers, tokens, K]."""
    folder = BUNDLED.parent
    config = read_config(folder)
    placement = linear_placement(layers=len(config.moe_layers), experts=config.experts, ranks=1)
    model = load_model(folder, device="cpu", placement=placement, rank=0)
    exchange = _Recorder(placement)
    pages = DOCUMENT // PAGE
    geometry = model.kv_geometry(pages + 1, PAGE)
    kv = torch.zeros(geometry.layers, 2, pages + 1, PAGE, geometry.kv_heads, geometry.head_dim)
    place_T = torch.arange(DOCUMENT)
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("\n\n".join(topics.values())).ids
    for start in range(0, tokens, DOCUMENT):
        batch = StepBatch(
            token_ids_T=torch.tensor(ids[start : start + DOCUMENT]),
            position_T=place_T,
            slot_T=place_T + PAGE,  # page 0 pads block tables
            query_start_S1=[0, DOCUMENT],
            context_S=[DOCUMENT],
            block_table_SB=torch.arange(1, pages + 1, dtype=torch.int32)[None],
            logit_row_N=torch.tensor([DOCUMENT - 1]),
        )
        exchange.begin_step(start // DOCUMENT, more=False)
        with torch.no_grad():
            run_single_stream(model.forward(batch, kv, exchange, placement))
    return np.stack([np.concatenate(each) for each in exchange.chosen])
