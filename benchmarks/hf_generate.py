"""The baseline: Hugging Face `generate` on a batch, in a process of its own, steered over standard input.

Reads one JSON line a measurement, {"experts": ..., "threads": ..., "batch": ..., "input": ..., "output": ...},
and answers with one, {"seconds": ..., "output_tokens": ...}. Greedy, float32, end-of-sequence ignored.
Started by `bench_serve_vs_hf.py`; not a benchmark by itself.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
import transformers


class Baseline:
    """One checkpoint, loaded once for each way of computing experts."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._model_of: dict[str, Any] = {}

    def model(self, experts: str) -> Any:
        """Return the model with an experts implementation: "eager", "grouped_mm" or "batched_mm"."""
        if experts not in self._model_of:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                self._folder, dtype=torch.float32, experts_implementation=experts
            )
            self._model_of[experts] = model.eval()
        return self._model_of[experts]

    @torch.inference_mode()
    def measure(self, *, experts: str, threads: int, batch: int, input_len: int, output_len: int, seed: int) -> float:
        """Return the seconds one `generate` of a batch takes, prefill included."""
        torch.set_num_threads(threads)
        model = self.model(experts)
        generator = torch.Generator().manual_seed(seed)
        prompt_SP = torch.randint(300, 4000, (batch, input_len), generator=generator)
        began = time.perf_counter()
        out = model.generate(
            prompt_SP,
            attention_mask=torch.ones_like(prompt_SP),
            max_new_tokens=output_len,
            min_new_tokens=output_len,
            do_sample=False,
            pad_token_id=1,
        )
        seconds = time.perf_counter() - began
        if out.shape[1] != input_len + output_len:
            raise SystemExit(f"generate: expected {output_len} new tokens, got {out.shape[1] - input_len}")
        return seconds


def main() -> None:
    """Answer measurements until standard input ends."""
    baseline = Baseline(sys.argv[1])
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps(versions), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        seconds = baseline.measure(
            experts=asked["experts"],
            threads=asked["threads"],
            batch=asked["batch"],
            input_len=asked["input"],
            output_len=asked["output"],
            seed=asked.get("seed", 0),
        )
        print(json.dumps({"seconds": seconds, "output_tokens": asked["batch"] * asked["output"]}), flush=True)


if __name__ == "__main__":
    main()
