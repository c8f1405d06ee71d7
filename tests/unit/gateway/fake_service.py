"""A whole gateway over fake ranks: in the test's loop, or on a loopback port in a thread of its own."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from typing import TYPE_CHECKING, Any

import tokenizers
from fake_ranks import FakeRanks
from tokenizers import decoders, models, pre_tokenizers, trainers

from fourlane.gateway.app import EmbeddedServer, create_app
from fourlane.gateway.metrics import Metrics
from fourlane.gateway.router import Limits, Router
from fourlane.gateway.state import GatewayState, ModelFacts
from fourlane.gateway.tokenizer import ModelTokenizer
from fourlane.lanes.connections import LaneBook
from fourlane.spec.deployment import Deployment, Gateway, Pool

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path
    from typing import Self

TEMPLATE = (
    "{%- for message in messages -%}{{- '<|' + message['role'] + '|>' + message['content'] -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
SPECIAL = ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>"]
TEXTS = [
    "In the beginning God created the heaven and the earth.",
    "Ünïcödé, 日本語, 🙂🙃 and so on.",
    "the the and and",
]


def build_model_folder(folder: Path) -> Path:
    """Write config.json and tokenizer files of a byte-level BPE of 300 tokens into a folder."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 20, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|endoftext|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    model = {"max_position_embeddings": 512, "vocab_size": tokenizer.get_vocab_size()}
    (folder / "config.json").write_text(json.dumps(model), encoding="utf-8")
    return folder


def deployment_of(*, prefill: int = 2, decode: int = 2, unified: int = 0, **gateway: Any) -> Deployment:
    """Return a deployment with these pools and gateway settings."""
    pools = (
        {"unified": Pool(ranks=unified)} if unified else {"prefill": Pool(ranks=prefill), "decode": Pool(ranks=decode)}
    )
    return Deployment(gateway=Gateway(**gateway), **pools)


def state_of(folder: Path, ranks: FakeRanks, deployment: Deployment, limits: Limits | None = None) -> GatewayState:
    """Return a gateway's state over fake ranks; the router is not started."""
    facts = ModelFacts.read(folder, deployment)
    metrics = Metrics(facts.name)
    router = Router(ranks, deployment, limits or Limits.of(deployment), metrics)
    return GatewayState(deployment, facts, ModelTokenizer.read(folder), router, metrics, LaneBook())


class FakeService:
    """A gateway served by uvicorn on a free loopback port, in a thread with its own event loop."""

    def __init__(
        self,
        folder: Path,
        *,
        ranks: FakeRanks | None = None,
        limits: Limits | None = None,
        up: bool = True,
        **options: Any,
    ) -> None:
        self.ranks = ranks or FakeRanks()
        self.folder = folder
        self.limits = limits
        self.options = options
        self.up = up
        self.facts: dict[str, int] = options.pop("facts", {})
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(20), "the service did not come up within 20 s"
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self._end.set)
        self._thread.join(20)
        assert not self._thread.is_alive(), "the service did not end within 20 s"

    @property
    def url(self) -> str:
        """Return the base address."""
        return f"http://127.0.0.1:{self.port}"

    def call(self, function: Callable[[], Any]) -> Any:
        """Run a function in the service's loop and return its result."""

        async def run() -> Any:
            return function()

        return self.wait(run())

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the service's loop and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        self.state = state_of(self.folder, self.ranks, deployment_of(**self.options), self.limits)
        self.router = self.state.router
        self.router.start()
        self.ranks.router = self.router
        if self.up:
            self.ranks.bring_up(self.router, **self.facts)
        listener = self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        server = EmbeddedServer(create_app(self.state), close_after_s=2)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.005)
        self._ready.set()
        await self._end.wait()
        await self.router.stop(0.0)
        server.should_exit = True
        await asyncio.wait_for(serving, 10)
        listener.close()
