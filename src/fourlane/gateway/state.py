"""What the HTTP side of one service is made of."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fourlane.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    from fourlane.gateway.metrics import Metrics
    from fourlane.gateway.router import Router
    from fourlane.gateway.tokenizer import ModelTokenizer
    from fourlane.lanes.connections import LaneBook
    from fourlane.spec.deployment import Deployment

__all__ = ["GatewayState", "ModelFacts"]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the gateway must know of the model; no weights.

    Args:
        max_length: most tokens of prompt and output.
        vocab_size: token ids are below this.
        created: seconds since 1970, of the folder's config.
        fingerprint: changes with the model's configuration or tokenizer.
    """

    name: str
    folder: Path
    max_length: int
    vocab_size: int
    created: int
    fingerprint: str

    @classmethod
    def read(cls, folder: Path, deployment: Deployment) -> ModelFacts:
        """Read a model folder's config.json.

        Raises:
            CheckpointError: no such file, or without a usable vocab_size or max_position_embeddings.
        """
        path = folder / "config.json"
        try:
            config = json.loads(path.read_bytes())
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror}); expected a model folder") from error
        except ValueError as error:
            raise CheckpointError(f"{path}: expected JSON, got {error}") from error
        length = _positive(path, config, "max_position_embeddings")
        name = deployment.model.name or ("bundled" if deployment.model.path == "bundled" else folder.resolve().name)
        return cls(
            name=name,
            folder=folder,
            max_length=min(length, deployment.model.max_length or length),
            vocab_size=_positive(path, config, "vocab_size"),
            created=int(path.stat().st_mtime),
            fingerprint=_fingerprint(folder),
        )


def _positive(path: Path, config: object, key: str) -> int:
    value = config.get(key) if isinstance(config, dict) else None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{path}: {key}: expected a positive integer, got {value!r}")
    return value


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (folder / name).is_file():
            digest.update((folder / name).read_bytes())
    return f"fl-{digest.hexdigest()[:12]}"


@dataclass(frozen=True, slots=True)
class GatewayState:
    """Everything a request handler uses."""

    deployment: Deployment
    model: ModelFacts
    tokenizer: ModelTokenizer
    router: Router
    metrics: Metrics
    lanes: LaneBook
    """The marks of every lane, and the gateway's own connections."""

    def max_length(self) -> int:
        """Return the most tokens of prompt and output: the model's limit, or less if the ranks' KV caches are small."""
        return min(self.model.max_length, self.router.token_limit() or self.model.max_length)
