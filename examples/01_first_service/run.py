"""Bring up a service inside a program, ask it twice, take it down."""

from __future__ import annotations

import asyncio

import httpx

from fourlane.gateway.service import running_service
from fourlane.spec.load import load_deployment


async def main() -> None:
    """Print two answers and what the KV lane carried for them."""
    deployment = load_deployment(overrides=["gateway.port=0", "prefill.ranks=1", "decode.ranks=1"])
    async with running_service(deployment) as service, httpx.AsyncClient(base_url=service.base_url, timeout=60) as http:
        models = (await http.get("/v1/models")).json()
        print("served:", ", ".join(model["id"] for model in models["data"]))

        question = {"role": "user", "content": "What is a river?"}
        chat = {"model": "bundled", "messages": [question], "temperature": 0, "max_tokens": 32}
        answer = (await http.post("/v1/chat/completions", json=chat)).raise_for_status().json()
        print("chat:", answer["choices"][0]["message"]["content"].strip())

        text = {"model": "bundled", "prompt": "In the beginning", "temperature": 0, "max_tokens": 16}
        answer = (await http.post("/v1/completions", json=text)).raise_for_status().json()
        print("text: In the beginning" + answer["choices"][0]["text"])
        usage = answer["usage"]
        print("tokens:", usage["prompt_tokens"], "in,", usage["completion_tokens"], "out")


if __name__ == "__main__":
    asyncio.run(main())
