"""Say which of the commands on standard input SGLang's parser refuses; run by a Python that has SGLang."""

import argparse
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
        from sglang.srt.server_args import ServerArgs  # pyrefly: ignore[missing-import]

        parser = argparse.ArgumentParser()
        ServerArgs.add_cli_args(parser)
        faults = [_faults(parser, words) for words in commands]
    print(json.dumps({"version": version("sglang"), "faults": faults}))  # noqa: T201


def _faults(parser: Any, words: list[str]) -> list[str]:
    known = parser._option_string_actions  # noqa: SLF001 - exact names are there alone
    unknown = [f"{word}: no option" for word in words if word.startswith("--") and word not in known]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parser.parse_args(words)
    except SystemExit:
        unknown.append(said.getvalue().strip().rpartition("\n")[2])
    return unknown


main()
