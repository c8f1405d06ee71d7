"""Run a model in this process: one rank, its own pages, any cut of the work into steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from fourlane.engine.batch import StepBatch
from fourlane.engine.exchange.local import LocalExchange
from fourlane.engine.executor import run_single_stream
from fourlane.engine.model.config import read_config
from fourlane.engine.model.qwen3_moe import load_model
from fourlane.policy.placement import linear_placement

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from fourlane.engine.model.qwen3_moe import CausalLM

BLOCK_SIZE = 4
BLOCKS = 200


@dataclass
class Text:
    """A sequence: its tokens, its pages, how many tokens are in them."""

    token_ids: list[int]
    blocks: list[int]
    computed: int = 0


@dataclass
class OneProcess:
    """A model with pages. Pages are handed out in a scattered order, so that mix-ups show."""

    model: CausalLM
    kv_LQBShd: Tensor = field(init=False)
    steps: int = 0

    def __post_init__(self) -> None:
        config = self.model.config
        self.placement = linear_placement(layers=len(config.moe_layers), experts=config.experts, ranks=1)
        self.exchange = LocalExchange(self.placement)
        geometry = self.model.kv_geometry(BLOCKS, BLOCK_SIZE)
        shape = (geometry.layers, 2, BLOCKS, BLOCK_SIZE, geometry.kv_heads, geometry.head_dim)
        self.kv_LQBShd = torch.full(shape, torch.nan)
        self.kv_LQBShd[:, :, 0] = 0.0  # page 0 pads block tables
        order = torch.randperm(BLOCKS - 1, generator=torch.Generator().manual_seed(7)) + 1
        self._free: list[int] = order.tolist()

    @classmethod
    def load(cls, folder: str | Path, **options: Any) -> OneProcess:
        """Load a checkpoint on CPU."""
        config = read_config(folder)
        placement = linear_placement(layers=len(config.moe_layers), experts=config.experts, ranks=1)
        return cls(load_model(folder, device="cpu", placement=placement, rank=0, **options))

    def text(self, token_ids: Sequence[int], *, room: int = 0) -> Text:
        """Begin a sequence with pages for its tokens and `room` more."""
        pages = -(-(len(token_ids) + room) // BLOCK_SIZE)
        blocks, self._free = self._free[:pages], self._free[pages:]
        self.kv_LQBShd[:, :, blocks] = 1e4  # what is left over in a page must not be seen
        return Text(list(token_ids), blocks)

    def drop(self, texts: Sequence[Text]) -> None:
        """Give the pages of texts back."""
        for text in texts:
            self._free += text.blocks

    def step(
        self,
        parts: Sequence[tuple[Text, int]],
        *,
        every_row: bool = True,
        on_kv: Callable[[int, Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """Compute the next n tokens of each text together; return logits of every row, or of last rows."""
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        starts = [0]
        tables: list[Tensor] = []
        for text, count in parts:
            span = range(text.computed, text.computed + count)
            tokens += text.token_ids[span.start : span.stop]
            positions += span
            slots += [text.blocks[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in span]
            starts.append(starts[-1] + count)
            text.computed += count
            tables.append(torch.tensor(text.blocks, dtype=torch.int32))
        table_SB = (
            torch.nn.utils.rnn.pad_sequence(tables, batch_first=True)
            if tables
            else torch.zeros(0, 0, dtype=torch.int32)
        )
        rows = range(starts[-1]) if every_row else [end - 1 for end in starts[1:]]
        batch = StepBatch(
            token_ids_T=torch.tensor(tokens, dtype=torch.int64),
            position_T=torch.tensor(positions, dtype=torch.int64),
            slot_T=torch.tensor(slots, dtype=torch.int64),
            query_start_S1=starts,
            context_S=[text.computed for text, _ in parts],
            block_table_SB=table_SB,
            logit_row_N=torch.tensor(list(rows), dtype=torch.int64),
            on_kv=on_kv,
        )
        self.steps += 1
        self.exchange.begin_step(self.steps, more=False)
        with torch.no_grad():
            return run_single_stream(self.model.forward(batch, self.kv_LQBShd, self.exchange, self.placement))

    def logits(self, token_ids: Sequence[int], *, chunks: Sequence[int]) -> Tensor:
        """Return the logits of every token of one text, computed in chunks of these sizes, over and over."""
        text = self.text(token_ids)
        outputs: list[Tensor] = []
        while text.computed < len(token_ids):
            size = chunks[len(outputs) % len(chunks)]
            outputs.append(self.step([(text, min(size, len(token_ids) - text.computed))]))
        self.drop([text])
        return torch.cat(outputs)
