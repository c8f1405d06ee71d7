"""A stand-in for deep_ep that has its recorded signatures and does what its documentation says, over gloo.

Calls are bound to the signatures in tests/golden/deepep first, so an argument that the library does not
have is an error here too; so are shapes, dtypes and numbers of ranks that it refuses. Rows move by the
process group it is given, on CPUs. What it computes is written from the documented behaviour, apart from
the code under test: with loops, a row at a time.
"""

# ruff: noqa: ARG002 - methods take what the library's do
from __future__ import annotations

import functools
import inspect
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

GOLDEN = Path(__file__).parents[1] / "golden" / "deepep"


def recorded(name: str) -> dict[str, Any]:
    """Return one file of recorded signatures."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def signature(parameters: list[str]) -> inspect.Signature:
    """Return a signature of parameters written as "name" or "name=default"."""
    found = []
    for text in parameters:
        name, equals, default = text.partition("=")
        value = eval(default) if equals else inspect.Parameter.empty  # literals of our own files
        found.append(inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=value))
    return inspect.Signature(found)


def enforced(class_name: str, record: dict[str, Any]) -> Any:
    """Return a decorator of classes: every recorded method takes what the record says, and nothing else is public."""

    def wrap(cls: type) -> type:
        methods = record["classes"][class_name]
        public = {name for name in vars(cls) if callable(getattr(cls, name)) and not name.startswith("_")}
        assert public <= set(methods), f"{class_name} of the library has no {sorted(public - set(methods))}"
        for name in {*public, "__init__"} & set(methods):
            static = name in record["static"]
            bound = _bound(getattr(cls, name), signature(methods[name]), f"{class_name}.{name}")
            setattr(cls, name, staticmethod(bound) if static else bound)
        return cls

    return wrap


def _bound(method: Any, expected: inspect.Signature, name: str) -> Any:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            arguments = expected.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name} of the library: {error}") from error
        arguments.apply_defaults()
        if "self" not in arguments.arguments:
            return method(**arguments.arguments)
        own = arguments.arguments.pop("self")
        return method(own, **arguments.arguments)

    return call


V1, V2, EP = recorded("buffer_v1"), recorded("elastic_v2"), recorded("ep_v2")
LOG: list[str] = []
"""Which kernels ran in this process."""


def _send(group: dist.ProcessGroup, parts_G: list[Any]) -> list[Any]:
    """Give each rank its part; return those given to this one, by rank."""
    everything: list[Any] = [None] * group.size()
    dist.all_gather_object(everything, parts_G, group)
    return [parts[group.rank()] for parts in everything]


def _send_rows(group: dist.ProcessGroup, rows_G: list[dict[tuple[int, int], torch.Tensor]]) -> dict[Any, torch.Tensor]:
    """Give each rank its rows, each under a key; return all that were given to this one."""
    packed = [(list(rows), torch.stack(list(rows.values())) if rows else None) for rows in rows_G]
    returned: dict[Any, torch.Tensor] = {}
    for keys, rows in _send(group, packed):
        if rows is not None:
            returned.update(zip(keys, rows, strict=True))
    return returned


def _form_of(x: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    if isinstance(x, tuple):
        elements, scales = x
        assert elements.dtype == torch.float8_e4m3fn
        assert scales.dtype == torch.float32
        assert scales.shape == (elements.shape[0], elements.shape[1] // 128)
        assert elements.shape[1] % 128 == 0
        return elements, scales
    assert x.dtype == torch.bfloat16, x.dtype
    return x, None


def _rows(tensor: torch.Tensor | None, index: list[int]) -> torch.Tensor | None:
    if tensor is None:
        return None
    return (tensor.view(torch.uint8) if tensor.dtype == torch.float8_e4m3fn else tensor)[index]


def _stack(parts: list[torch.Tensor]) -> torch.Tensor:
    rows = torch.cat(parts)
    return rows.view(torch.float8_e4m3fn) if rows.dtype == torch.uint8 else rows


def _add_rows(rows: list[torch.Tensor], dim: int) -> torch.Tensor:
    """Add bfloat16 rows, one after the other, in float32; round once."""
    total = torch.zeros(dim, dtype=torch.float32)
    for row in rows:
        assert row.dtype == torch.bfloat16
        total = total + row.float()
    return total.to(torch.bfloat16)


@enforced("Config", V1)
class Config:
    """Sizes of V1's buffers."""

    def get_nvl_buffer_size_hint(self, hidden_bytes: int, num_ranks: int) -> int:
        return hidden_bytes * num_ranks

    def get_rdma_buffer_size_hint(self, hidden_bytes: int, num_ranks: int) -> int:
        return hidden_bytes * num_ranks if num_ranks > 8 else 0


@enforced("Buffer", V1)
class Buffer:
    """V1."""

    num_sms = 20

    def __init__(self, group: dist.ProcessGroup, num_rdma_bytes: int, low_latency_mode: bool, **more: Any) -> None:
        assert more["num_nvl_bytes"] > 0
        self._group, self._ranks, self._rank = group, group.size(), group.rank()
        self._low_latency, self._rdma = low_latency_mode, num_rdma_bytes
        self._clean = True
        opened: list[Any] = [None] * self._ranks
        dist.all_gather_object(opened, (num_rdma_bytes, low_latency_mode), group)
        assert len(set(opened)) == 1, f"ranks open different buffers: {opened}"

    @staticmethod
    def get_dispatch_config(num_ranks: int) -> Config:
        assert num_ranks in V1["limits"]["ranks"]["allowed"], f"Unsupported number of EP ranks: {num_ranks}"
        return Config()

    @staticmethod
    def get_combine_config(num_ranks: int) -> Config:
        return Buffer.get_dispatch_config(num_ranks)

    @staticmethod
    def get_low_latency_rdma_size_hint(
        num_max_dispatch_tokens_per_rank: int, hidden: int, num_ranks: int, num_experts: int
    ) -> int:
        return 2 * num_max_dispatch_tokens_per_rank * hidden * num_ranks * num_experts // num_ranks

    def get_dispatch_layout(self, topk_idx: torch.Tensor, num_experts: int, **more: Any) -> tuple[Any, ...]:
        assert topk_idx.dtype == torch.int64
        assert num_experts % self._ranks == 0
        per_expert = [int((topk_idx == expert).sum()) for expert in range(num_experts)]
        held = num_experts // self._ranks
        in_rank = torch.zeros((topk_idx.shape[0], self._ranks), dtype=torch.bool)
        for token, experts in enumerate(topk_idx.tolist()):
            for expert in experts:
                if expert >= 0:
                    in_rank[token, expert // held] = True
        per_rank = in_rank.sum(dim=0).to(torch.int32)
        return per_rank, None, torch.tensor(per_expert, dtype=torch.int32), in_rank, None

    def dispatch(self, x: Any, topk_idx: torch.Tensor, topk_weights: torch.Tensor, **more: Any) -> tuple[Any, ...]:
        LOG.append("normal dispatch")
        self._clean = False
        data, scales = _form_of(x)
        in_rank, per_expert = more["is_token_in_rank"], more["num_tokens_per_expert"]
        assert more["num_tokens_per_rank"].tolist() == in_rank.sum(dim=0).tolist()
        assert topk_weights.dtype == torch.float32
        held = per_expert.numel() // self._ranks
        parts = []
        for rank in range(self._ranks):
            index = in_rank[:, rank].nonzero()[:, 0].tolist()
            local = topk_idx[index] - rank * held
            local[(local < 0) | (local >= held)] = -1
            parts.append((_rows(data, index), _rows(scales, index), local, topk_weights[index], index))
        got = _send(self._group, parts)
        recv_x = _stack([part[0] for part in got])
        recv_scales = None if scales is None else torch.cat([part[1] for part in got])
        recv_idx, recv_weights = torch.cat([part[2] for part in got]), torch.cat([part[3] for part in got])
        counts = [int((recv_idx == expert).sum()) for expert in range(held)]
        handle = ([part[4] for part in got], in_rank)
        moved = (recv_x, recv_scales) if recv_scales is not None else recv_x
        return moved, recv_idx, recv_weights, counts, handle, None

    def combine(self, x: torch.Tensor, handle: Any, **more: Any) -> tuple[Any, ...]:
        LOG.append("normal combine")
        self._clean = False
        sources, in_rank = handle
        assert x.dtype == torch.bfloat16
        assert x.shape[0] == sum(len(index) for index in sources)
        got = _send(self._group, [rows.clone() for rows in x.split([len(index) for index in sources])])
        result = torch.zeros((in_rank.shape[0], x.shape[1]), dtype=torch.bfloat16)
        taken = [0] * self._ranks
        for token in range(in_rank.shape[0]):
            rows = []
            for rank in range(self._ranks):
                if in_rank[token, rank]:
                    rows.append(got[rank][taken[rank]])
                    taken[rank] += 1
            result[token] = _add_rows(rows, x.shape[1])
        return result, None, None

    def clean_low_latency_buffer(self, num_max_dispatch_tokens_per_rank: int, hidden: int, num_experts: int) -> None:
        LOG.append("clean")
        self._clean = True

    def low_latency_dispatch(
        self,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        num_max_dispatch_tokens_per_rank: int,
        num_experts: int,
        use_fp8: bool,
        **more: Any,
    ) -> tuple[Any, ...]:
        LOG.append("low-latency dispatch")
        limits = V1["limits"]
        assert self._clean, "normal kernels ran; the buffer is dirty"
        assert self._low_latency
        assert x.dtype == torch.bfloat16
        assert x.shape[0] <= num_max_dispatch_tokens_per_rank <= limits["low_latency_tokens"]["at_most"]
        assert x.shape[1] in limits["low_latency_hidden"]["allowed"], "Unsupported hidden"
        assert topk_idx.shape[1] <= limits["low_latency_top_k"]["at_most"]
        held, most = num_experts // self._ranks, num_max_dispatch_tokens_per_rank * self._ranks
        chosen = topk_idx.tolist()
        pairs = [(expert, token) for expert in range(num_experts) for token, row in enumerate(chosen) if expert in row]
        parts = []
        for rank in range(self._ranks):
            own = [pair for pair in pairs if pair[0] // held == rank]
            parts.append((own, x[[token for _, token in own]]))
        got = [[(*pair, row) for pair, row in zip(*part, strict=True)] for part in _send(self._group, parts)]
        recv = torch.full((held, most, x.shape[1]), float("nan"), dtype=torch.bfloat16)
        source: list[list[tuple[int, int]]] = [[] for _ in range(held)]
        for rank in reversed(range(self._ranks)):  # no order of ranks is promised
            for expert, token, row in got[rank]:
                local = expert - self._rank * held
                recv[local, len(source[local])] = row
                source[local].append((rank, token))
        counts = torch.tensor([len(rows) for rows in source], dtype=torch.int32)
        handle = (source, num_max_dispatch_tokens_per_rank, x.shape, num_experts)
        return (_cast_fp8(recv) if use_fp8 else recv), counts, handle, None, None

    def low_latency_combine(
        self, x: torch.Tensor, topk_idx: torch.Tensor, topk_weights: torch.Tensor, handle: Any, **more: Any
    ) -> tuple[Any, ...]:
        LOG.append("low-latency combine")
        source, most, shape, num_experts = handle
        held = num_experts // self._ranks
        assert self._clean, "normal kernels ran; the buffer is dirty"
        assert x.shape == (held, most * self._ranks, shape[1])
        assert x.dtype == torch.bfloat16
        assert topk_weights.dtype == torch.float32
        parts: list[dict[tuple[int, int], torch.Tensor]] = [{} for _ in range(self._ranks)]
        for local, rows in enumerate(source):
            for place, (rank, token) in enumerate(rows):
                parts[rank][token, self._rank * held + local] = x[local, place]
        returned = _send_rows(self._group, parts)
        result = torch.zeros(tuple(shape), dtype=torch.float32)
        for token, experts in enumerate(topk_idx.tolist()):
            for k, expert in enumerate(experts):
                result[token] += returned[token, expert].float() * topk_weights[token, k]
        return result.to(torch.bfloat16), None, None


def _cast_fp8(recv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    blocks = recv.float().nan_to_num().unflatten(2, (-1, 128))
    scales = blocks.abs().amax(dim=3).clamp(min=1e-4) / 448
    elements = (blocks / scales.unsqueeze(3)).flatten(2).to(torch.float8_e4m3fn)
    column_major = scales.transpose(1, 2).contiguous().transpose(1, 2)
    return elements, column_major


class _Elastic:
    """V2."""

    def __init__(self, group: dist.ProcessGroup, num_max_tokens_per_rank: int, hidden: int, **more: Any) -> None:
        assert hidden % V2["limits"]["hidden"]["multiple_of"] == 0
        assert 0 < more["num_topk"] <= V2["limits"]["top_k"]["at_most"]
        self._group, self._ranks, self._rank = group, group.size(), group.rank()
        self._tokens, self._scaled = num_max_tokens_per_rank, more["use_fp8_dispatch"]
        self._deterministic, self._reduces = more["deterministic"], more["allow_multiple_reduction"]
        self._explicit, self._destroyed = more["explicitly_destroy"], False
        opened: list[Any] = [None] * self._ranks
        dist.all_gather_object(opened, num_max_tokens_per_rank, group)
        assert len(set(opened)) == 1, f"ranks open different buffers: {opened}"
        LOG.append(f"open {num_max_tokens_per_rank}")

    def destroy(self) -> None:
        assert self._explicit
        self._destroyed = True
        LOG.append(f"destroy {self._tokens}")

    def dispatch(self, x: Any, topk_idx: torch.Tensor, topk_weights: torch.Tensor, **more: Any) -> tuple[Any, ...]:
        LOG.append("elastic dispatch")
        assert not self._destroyed
        assert more["do_expand"], "the stand-in knows the expanding layout only"
        assert more["num_max_tokens_per_rank"] == self._tokens
        data, scales = _form_of(x)
        assert (scales is not None) == self._scaled
        assert data.shape[0] <= self._tokens
        assert topk_idx.dtype == torch.int64
        held = more["num_experts"] // self._ranks
        parts = []
        for rank in range(self._ranks):
            rows = [
                (expert - rank * held, token, k)
                for token, experts in enumerate(topk_idx.tolist())
                for k, expert in enumerate(experts)
                if expert // held == rank
            ]
            index = [token for _, token, _ in rows]
            weights = torch.tensor([topk_weights[token, k] for _, token, k in rows])
            parts.append((rows, _rows(data, index), _rows(scales, index), weights))
        got = _send(self._group, parts)
        places = [
            (local, rank, token, k, at) for rank, part in enumerate(got) for at, (local, token, k) in enumerate(part[0])
        ]
        places.sort(key=lambda place: (place[0], place[1] if self._deterministic else -place[1], place[2]))
        offset = [0]
        for part in got:
            offset.append(offset[-1] + len(part[0]))
        order = [offset[rank] + at for _, rank, _, _, at in places]
        recv_x = _stack([_rows(torch.cat([part[1] for part in got]), order)])
        recv_scales = None if scales is None else torch.cat([part[2] for part in got])[order]
        weights = torch.cat([part[3] for part in got])[order]
        handle = ([place[1:4] for place in places], topk_idx)
        return (recv_x if recv_scales is None else (recv_x, recv_scales)), None, weights, handle, None

    def combine(self, x: torch.Tensor, handle: Any, **more: Any) -> tuple[Any, ...]:
        LOG.append("elastic combine")
        assert not self._destroyed
        assert not self._reduces, "the stand-in adds at a token's rank only"
        places, topk_idx = handle
        assert x.dtype == torch.bfloat16
        assert x.shape[0] == len(places)
        parts: list[dict[tuple[int, int], torch.Tensor]] = [{} for _ in range(self._ranks)]
        for row, (rank, token, k) in zip(x, places, strict=True):
            parts[rank][token, k] = row
        returned = _send_rows(self._group, parts)
        tokens, top_k = topk_idx.shape
        rows = [_add_rows([returned[token, k] for k in range(top_k)], x.shape[1]) for token in range(tokens)]
        return torch.stack(rows) if rows else x.new_zeros((0, x.shape[1])), None, None


@enforced("ElasticBuffer", V2)
class ElasticBuffer(_Elastic):
    """V2 as published."""

    __init__ = _Elastic.__init__
    destroy, dispatch, combine = _Elastic.destroy, _Elastic.dispatch, _Elastic.combine


@enforced("EPBuffer", EP)
class EPBuffer(_Elastic):
    """V2 after it was divided."""

    __init__ = _Elastic.__init__
    destroy, dispatch, combine = _Elastic.destroy, _Elastic.dispatch, _Elastic.combine


def library(*classes: str) -> ModuleType:
    """Return a module like deep_ep with these of its classes."""
    module = ModuleType("deep_ep")
    module.topk_idx_t = torch.int64
    for name in classes:
        setattr(module, name, {"Buffer": Buffer, "ElasticBuffer": ElasticBuffer, "EPBuffer": EPBuffer}[name])
    return module
