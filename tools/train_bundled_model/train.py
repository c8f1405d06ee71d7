"""Train within a budget of wall-clock time: two data-parallel processes of one thread each on a CPU, or one GPU.

The learning rate and the length of the windows follow the fraction of the budget that is spent, so that a run always
ends with its learning rate at zero, on however fast a machine. A run that is interrupted resumes from `checkpoint.pt`.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import torch.multiprocessing

from tools.train_bundled_model import data
from tools.train_bundled_model.model import Model, ModelConfig, initial_parameters
from tools.train_bundled_model.optimizer import Optimizer, Rates

if TYPE_CHECKING:
    from pathlib import Path

    import tokenizers

Windows = tuple[tuple[float, int], ...]

# By stage of training, the fraction of the budget until which windows have a length. Most documents are short; the
# last windows teach the positions up to the model's limit.
WINDOWS: dict[str, Windows] = {
    "general": ((0.30, 128), (0.72, 256), (0.90, 512), (1.0, 1024)),
    "focus": ((0.86, 256), (0.94, 512), (1.0, 1024)),
}
_LOG_EVERY = 10


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How to train; the defaults made the bundled model's first stage, `focus` its second.

    `peak` scales all learning rates. A run with `warm_start` begins with the weights of that checkpoint and fresh
    optimizers.
    """

    budget_s: float
    stage: str = "general"
    warm_start: str | None = None
    peak: float = 1.0
    tokens_per_process: int = 4096
    processes: int = 2
    device: str = "cpu"
    seed: int = 20261123
    warm_up: float = 0.015
    balance_weight: float = 5e-3
    z_weight: float = 1e-4
    gradient_clip: float = 1.0
    checkpoint_every_s: float = 180.0
    rates: Rates = dataclasses.field(default_factory=Rates)


def focus(config: TrainingConfig, warm_start: Path) -> TrainingConfig:
    """Return the configuration of the second stage: lower rates, from the weights of the first."""
    return dataclasses.replace(config, stage="focus", warm_start=str(warm_start), peak=0.6, warm_up=0.03)


def window_length(fraction: float, windows: Windows) -> int:
    """Return the length of the windows at this fraction of the budget."""
    return next((length for end, length in windows if fraction < end), windows[-1][1])


def rate_scale(fraction: float, warm_up: float) -> float:
    """Return the factor on the learning rates: linear warm-up, then linear decay to zero."""
    return max(0.0, min(fraction / warm_up + 0.02, (1 - fraction) / (1 - warm_up)))


def train(documents: Path, tokenizer: tokenizers.Tokenizer, run: Path, config: TrainingConfig) -> None:
    """Train on a file of documents, leaving checkpoint.pt and log.txt in `run`."""
    run.mkdir(parents=True, exist_ok=True)
    data.tokenize(documents, tokenizer, run / "train_tokens.npz")
    meeting = run / "meeting_point"
    meeting.unlink(missing_ok=True)
    torch.multiprocessing.spawn(_process, (run, config), nprocs=config.processes)


def _process(rank: int, run: Path, config: TrainingConfig) -> None:
    torch.set_num_threads(1)
    if config.processes > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{run}/meeting_point", rank=rank, world_size=config.processes
        )
    Trainer(rank, run, config).run()
    if config.processes > 1:
        dist.destroy_process_group()


class Trainer:
    """One process of the run. Weights are bfloat16 copies of float32 masters; every process keeps both."""

    def __init__(self, rank: int, run: Path, config: TrainingConfig) -> None:
        self.rank = rank
        self.folder = run
        self.config = config
        self.model_config = ModelConfig()
        master = initial_parameters(self.model_config, seed=config.seed).to(config.device)
        self.optimizer = Optimizer(self.model_config, master, config.rates)
        self.elapsed = 0.0
        self.tokens_seen = 0
        self.restarts = 0
        self._resume()
        self.weights = master.bfloat16()
        self.gradient = torch.zeros_like(self.weights)
        parameters = {n: v.requires_grad_() for n, v in self.model_config.views(self.weights).items()}
        for name, view in self.model_config.views(self.gradient).items():
            parameters[name].grad = view
        self.model = Model(self.model_config, parameters)
        tokens = data.load(run / "train_tokens.npz")
        seed = config.seed + self.restarts
        self.packer = data.Packer(tokens, rank=rank, world=config.processes, seed=seed)

    def run(self) -> None:
        """Step until the budget is spent."""
        start, elapsed_before, saved = time.monotonic(), self.elapsed, time.monotonic()
        while (fraction := self.elapsed / self.config.budget_s) < 1.0:
            begun = time.monotonic()
            loss, balance, norm = self._step(fraction)
            self.elapsed = self._agree(elapsed_before + time.monotonic() - start)
            if self.rank == 0 and self.optimizer.steps % _LOG_EVERY == 0:
                self._log(fraction, loss, balance, norm, time.monotonic() - begun)
            if self.rank == 0 and time.monotonic() - saved > self.config.checkpoint_every_s:
                saved = time.monotonic()
                self.save()
        if self.rank == 0:
            self.save()

    def save(self) -> None:
        """Write the checkpoint, replacing the last one only when the new one is whole."""
        state = {
            "optimizer": self.optimizer.state(), "elapsed": self.elapsed, "tokens_seen": self.tokens_seen,
            "restarts": self.restarts, "config": dataclasses.asdict(self.config),
        }  # fmt: skip
        partial = self.folder / "checkpoint.partial"
        torch.save(state, partial)
        partial.replace(self.folder / "checkpoint.pt")

    def _resume(self) -> None:
        path = self.folder / "checkpoint.pt"
        if path.exists():
            state = torch.load(path, map_location=self.config.device, weights_only=True)
            self.optimizer.load(state["optimizer"])
            self.elapsed, self.tokens_seen = state["elapsed"], state["tokens_seen"]
            self.restarts = state["restarts"] + 1
        elif self.config.warm_start:
            state = torch.load(self.config.warm_start, map_location=self.config.device, weights_only=True)
            self.optimizer.master.copy_(state["optimizer"]["master"])

    def _step(self, fraction: float) -> tuple[float, float, float]:
        c = self.config
        length = window_length(fraction, WINDOWS[c.stage])
        token_BS, target_BS = (
            torch.from_numpy(a).to(c.device) for a in self.packer.batch(c.tokens_per_process // length, length)
        )
        self.gradient.zero_()
        loss, statistics = self.model.loss(token_BS, target_BS)
        (loss + c.balance_weight * statistics.balance + c.z_weight * statistics.z).backward()
        if c.processes > 1:
            dist.all_reduce(self.gradient)
        gradient = self.gradient.float().div_(c.processes)
        norm = gradient.norm()
        gradient.mul_((c.gradient_clip / norm.clamp(min=1e-6)).clamp(max=1.0))
        self.optimizer.step(gradient, c.peak * rate_scale(fraction, c.warm_up))
        with torch.no_grad():
            self.weights.copy_(self.optimizer.master)
        self.tokens_seen += c.processes * c.tokens_per_process
        return loss.item(), statistics.balance.item(), norm.item()

    def _agree(self, elapsed: float) -> float:
        """Take the first process's clock, so that all take the same steps."""
        if self.config.processes == 1:
            return elapsed
        clock = torch.tensor(elapsed, dtype=torch.float64)
        dist.broadcast(clock, 0)
        return clock.item()

    def _log(self, fraction: float, loss: float, balance: float, norm: float, step_s: float) -> None:
        epochs = self.packer.documents * self.config.processes / len(self.packer)
        line = (
            f"step {self.optimizer.steps} spent {fraction:.4f} "
            f"length {window_length(fraction, WINDOWS[self.config.stage])} loss {loss:.4f} "
            f"balance {balance:.3f} gradient {norm:.3f} tokens {self.tokens_seen / 1e6:.2f}M epochs {epochs:.2f} "
            f"step_s {step_s:.2f}\n"
        )
        with (self.folder / "log.txt").open("a") as file:
            file.write(line)
