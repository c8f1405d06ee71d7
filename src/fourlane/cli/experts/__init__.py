"""`fourlane experts`: where experts live and how their tokens are shared out, on files. A module a subcommand."""

from __future__ import annotations

from fourlane.cli import LazyGroup

__all__ = ["experts"]

_COMMANDS = {
    "advise": "Say whether balancing is worth switching on, with how much redundancy, and why.",
    "bench": "Compare placements and ways to split batches, side by side in one run.",
    "export": "Write a placement for SGLang or vLLM, or in another format.",
    "generate": "Draw a load file like those of real models, to try everything on.",
    "place": "Place experts, with redundant ones, for a load; or repair a placement.",
    "show": "Show a load or a placement: summary, heat map, balance over time; of a file or a service.",
    "split": "Split batches over replicas by their counts.",
}

experts = LazyGroup(
    name="experts",
    summaries=_COMMANDS,
    package="fourlane.cli.experts",
    help="""Balance the experts of a mixture-of-experts model over ranks: placement, redundancy, splitting of batches.

    Loads are files of how many tokens each expert of each layer got: npz, JSON or safetensors, as fourlane, SGLang or
    vLLM write them.

    \b
    Examples:
      fourlane experts generate -o loads.npz                      a load to try it on, if you have none
      fourlane experts show loads.npz --ranks 32 --plot loads.png
      fourlane experts advise loads.npz --ranks 32 --phase decode
      fourlane experts place loads.npz --ranks 32 --redundant 32 --phase decode -o placement.json
      fourlane experts export placement.json --engine sglang -o init_expert_location.json
      fourlane experts show http://127.0.0.1:8000                 what a running service has seen

    Exit codes: 0 done, 1 a check did not pass, 2 a file or option is wrong, 3 this machine lacks something,
    130 interrupted.
    """,
)
