# Types of the native module (cpp/bindings/module.cpp).

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

Weights: TypeAlias = NDArray[np.float32] | NDArray[np.uint16]

def crc32c(data: Buffer, seed: int = 0) -> int: ...
def crc32c_table(data: Buffer, seed: int = 0) -> int: ...
def instruction_sets() -> list[str]: ...
def advise_huge_pages(array: Weights) -> None: ...
def pack_panels(weight: Weights, out: Weights, slot: int, first: int, step: int) -> None: ...
def linear(x: NDArray[np.float32], weight: Weights, out: NDArray[np.float32], isa: str = "") -> None: ...
def expert_ffn(
    x: NDArray[np.float32],
    offsets: Sequence[int],
    gate_up: Weights,
    down: Weights,
    out: NDArray[np.float32],
    isa: str = "",
) -> None: ...
def paged_attention(
    queries: NDArray[np.float32],
    pages: NDArray[np.float32],
    blocks: NDArray[np.int32],
    query_start: NDArray[np.int64],
    context: NDArray[np.int64],
    scale: float,
    out: NDArray[np.float32],
    isa: str = "",
) -> None: ...
