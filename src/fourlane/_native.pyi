# Types of the native module (cpp/bindings/).

from collections.abc import Sequence
from typing import Any, TypeAlias

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
def rms_norm(
    x: NDArray[np.float32], weight: NDArray[np.float32], eps: float, out: NDArray[np.float32], isa: str = ""
) -> None: ...
def place_heads(
    qkv: NDArray[np.float32],
    norm: NDArray[np.float32],
    cos: NDArray[np.float32],
    sin: NDArray[np.float32],
    eps: float,
    slots: NDArray[np.int64],
    pages: NDArray[np.float32],
    isa: str = "",
) -> None: ...
def add_gated(y: NDArray[np.float32], gate: NDArray[np.float32], out: NDArray[np.float32], isa: str = "") -> None: ...
def choose_experts(
    logits: NDArray[np.float32],
    renormalise: bool,
    experts: NDArray[np.int64],
    weights: NDArray[np.float32],
    isa: str = "",
) -> None: ...
def sort_by_slot(
    experts: NDArray[np.int64],
    slot_of: NDArray[np.int64],
    slots: int,
    order: NDArray[np.int64],
    rows: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> None: ...
def join_ranges(firsts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]: ...
def weighted_sum(
    y: NDArray[np.float32],
    order: NDArray[np.int64],
    weights: NDArray[np.float32],
    out: NDArray[np.float32],
    isa: str = "",
) -> None: ...
def pack_float8(x: NDArray[np.float32], packed: NDArray[np.uint8], isa: str = "") -> None: ...
def unpack_float8(packed: NDArray[np.uint8], x: NDArray[np.float32], isa: str = "") -> None: ...
def choose_copies(cost: NDArray[np.int64], slots: int, copies: NDArray[np.int32]) -> None: ...
def lower_bound(load: NDArray[np.int64], ranks: int, slots_per_rank: int) -> int: ...
def place(
    cost: NDArray[np.int64],
    ranks: int,
    ranks_per_unit: int,
    good_enough: NDArray[np.int64],
    steps: int,
    seed: int,
    previous: NDArray[np.int32],
    moves: int,
    hardly: int,
    redundancy: int,
    slots: NDArray[np.int32],
) -> list[int]: ...
def design_for_splitting(
    slots: NDArray[np.int32],
    cost: NDArray[np.int64],
    load: NDArray[np.float64],
    previous: NDArray[np.int32],
    groups: tuple[int, int, int],
    leaning: tuple[float, float, int],
    equal_split: float,
    moves: int,
    steps: int,
    seed: int,
) -> int: ...
def split_balance(
    slots: NDArray[np.int32],
    load: NDArray[np.float64],
    ranks: int,
    leaning: tuple[float, float, int],
    seed: int,
    out: NDArray[np.float64],
) -> None: ...

Counts: TypeAlias = NDArray[np.int64] | NDArray[np.int32]

def split_tokens(
    counts: Counts,
    start: NDArray[np.int32],
    slot: NDArray[np.int32],
    rank: NDArray[np.int32],
    nodes: int,
    quota: NDArray[np.int32],
    tokens: NDArray[np.int64],
) -> float: ...
def split_equally(
    counts: Counts,
    start: NDArray[np.int32],
    slot: NDArray[np.int32],
    rank: NDArray[np.int32],
    quota: NDArray[np.int32],
    tokens: NDArray[np.int64],
) -> float: ...
def equal_tokens(
    counts: Counts,
    start: NDArray[np.int32],
    slot: NDArray[np.int32],
    rank: NDArray[np.int32],
    slots: int,
    tokens: NDArray[np.int64],
) -> bool: ...
def split_local_tokens(
    count: Counts,
    start: NDArray[np.int32],
    slot: NDArray[np.int32],
    rank: NDArray[np.int32],
    own: int,
    ranks: int,
    nodes: int,
    quota: NDArray[np.int32],
) -> bool: ...

class SocketMesh:
    def __init__(self, sockets: Sequence[int]) -> None: ...
    def exchange(
        self,
        kind: int,
        out: NDArray[np.uint8],
        out_sizes: Sequence[int],
        in_: NDArray[np.uint8],
        in_sizes: Sequence[int],
    ) -> int: ...
    def gather(self, kind: int, mine: NDArray[np.uint8], everybody: NDArray[np.uint8]) -> int: ...
    def wait(
        self, operation: int, patience_ms: int, wake: int = -1
    ) -> tuple[int, int, list[tuple[int, int, int, int]], list[float]]: ...
    def interrupt(self) -> None: ...
    def settle(self) -> None: ...
    @property
    def sleeps(self) -> int: ...

def lay_out_rows(
    quota_GP: NDArray[np.int64],
    rank: int,
    first_P: NDArray[np.int64],
    rows_G: NDArray[np.int64],
    offset_S1: NDArray[np.int64],
) -> None: ...

class SharedSegment:
    @staticmethod
    def make(ranks: int, gather_bytes: int, buffer_bytes: int) -> SharedSegment: ...
    @staticmethod
    def map(descriptor: int, ranks: int) -> SharedSegment: ...
    @property
    def descriptor(self) -> int: ...
    def close_descriptor(self) -> None: ...
    def received(self, dispatch: int) -> NDArray[np.uint8]: ...
    def output(self, dispatch: int) -> NDArray[np.uint8]: ...
    def parts(self, operation: int) -> NDArray[np.uint8]: ...

class SharedExchange:
    def __init__(
        self, rank: int, segments: Sequence[SharedSegment], sockets: Sequence[int], processes: Sequence[int]
    ) -> None: ...
    def give(self, kind: int, mine: NDArray[np.uint8]) -> int: ...
    def collect(
        self, operation: int, kind: int, everybody: NDArray[np.uint8], patience_s: float
    ) -> tuple[int, list[int]] | None: ...
    def send_rows(
        self,
        dispatch: int,
        x: NDArray[np.uint8],
        rows: NDArray[np.int64],
        quota_P: NDArray[np.int64],
        first_P: NDArray[np.int64],
        slots_per_rank: int,
    ) -> None: ...
    def await_rows(
        self, dispatch: int, rows_G: NDArray[np.int64], patience_s: float
    ) -> tuple[int, list[int]] | None: ...
    def give_outputs(self, dispatch: int, y: NDArray[np.uint8]) -> None: ...
    def await_outputs(
        self,
        dispatch: int,
        quota_P: NDArray[np.int64],
        first_P: NDArray[np.int64],
        slots_per_rank: int,
        patience_s: float,
    ) -> tuple[int, list[int]] | None: ...
    def sum_outputs(
        self,
        dispatch: int,
        order: NDArray[np.int64],
        quota_P: NDArray[np.int64],
        first_P: NDArray[np.int64],
        slots_per_rank: int,
        weights: NDArray[np.float32],
        out: NDArray[np.float32],
    ) -> None: ...
    def copy_outputs(
        self,
        dispatch: int,
        quota_P: NDArray[np.int64],
        first_P: NDArray[np.int64],
        slots_per_rank: int,
        out: NDArray[np.uint8],
    ) -> None: ...
    def all_to_all(self, blocks: NDArray[np.uint8], patience_s: float) -> tuple[int, list[int]] | None: ...
    def leave(self) -> None: ...
    @property
    def sleeps(self) -> int: ...

class FabricSimulation:
    def __init__(self, arrays: dict[str, Any]) -> None: ...
    def advance(self, max_events: int) -> bool: ...
    def progress(self) -> tuple[int, int, int, int]: ...
    def result(self) -> dict[str, Any]: ...

class FlowLevel:
    def __init__(self, arrays: dict[str, Any], epoch: int, tolerance: float) -> None: ...
    def rates(self, flows: NDArray[np.uint32]) -> dict[str, Any]: ...
    def advance(self) -> bool: ...
    def flows_done(self) -> int: ...
    def times(self) -> dict[str, Any]: ...
