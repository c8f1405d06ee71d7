"""README and docs name only files, folders and commands that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]
    if "_build" not in path.parts
)
README = ROOT / "README.md"

# Folders a path in the text may begin with; `gateway/` and the like are rooms of the package.
TOPS = ("src", "cpp", "tests", "docs", "scripts", "benchmarks", "tools", "examples", "changes", ".ci")
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)[^)]*\)")
COMMAND = re.compile(r"^(?:\$ )?fourlane ([a-z]+)((?: [a-z]+)?)", re.MULTILINE)
SCRIPT = re.compile(r"^(?:\$ )?((?:scripts|\.ci)/[a-z_]+)", re.MULTILINE)
FENCE = re.compile(r"^```[a-z]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
MARKED = re.compile(r"^<!-- ci: (install|test) -->\n```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def page_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def exists(named: str) -> bool:
    """Tell whether a path is there, or a pattern with * or {a,b} matches something."""
    choice = re.search(r"\{([^}]*)\}", named)
    if choice:
        return all(
            exists(named[: choice.start()] + option.strip() + named[choice.end() :]) for option in choice[1].split(",")
        )
    return any(ROOT.glob(named)) if "*" in named else (ROOT / named).exists()


def paths_in(text: str) -> set[str]:
    spans = [span for code in CODE.findall(text) for span in code.split()]
    return {
        span.rstrip(".,:;")
        for span in spans
        if span.startswith(tuple(f"{top}/" for top in TOPS)) and not re.search(r"[<>$=]|NN_|YYYY|yyyy", span)
    }


def commands_in(text: str) -> set[str]:
    shell = "\n".join(FENCE.findall(text)) + "\n" + "\n".join(CODE.findall(text))
    return {match[1] for match in COMMAND.finditer(shell)}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_path_named_in_a_page_exists(page: Path) -> None:
    assert [path for path in sorted(paths_in(page.read_text())) if not exists(path)] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    targets = [link for link in LINK.findall(page.read_text()) if "://" not in link and not link.startswith("mailto:")]
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_script_run_in_a_page_exists_and_can_be_run(page: Path) -> None:
    shell = "\n".join(FENCE.findall(page.read_text()))
    for script in SCRIPT.findall(shell):
        assert (ROOT / script).stat().st_mode & 0o100


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_command_named_in_a_page_is_one_of_fourlanes(page: Path) -> None:
    named = commands_in(page.read_text())
    if not named:
        return
    if not (ROOT / "src/fourlane/cli/__init__.py").exists():
        pytest.skip("fourlane.cli is not there")
    run = subprocess.run(
        [sys.executable, "-m", "fourlane", "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    known = set(re.findall(r"^\s*[│|]?\s+([a-z]+)\s", run.stdout, re.MULTILINE))
    assert named - known == set()


def test_the_readme_marks_the_commands_that_ci_runs() -> None:
    if not README.exists():
        pytest.skip("README.md is not there")
    marked = dict(MARKED.findall(README.read_text()))
    assert set(marked) == {"install", "test"}
    assert "constraints.txt" in marked["install"]
    assert "scripts/test" in marked["test"]


def test_a_missing_path_or_command_would_be_noticed() -> None:
    text = "See `src/fourlane/errors.py` and `src/fourlane/absent.py`, run\n```sh\nfourlane levitate --now\n```\n"
    assert [path for path in sorted(paths_in(text)) if not exists(path)] == ["src/fourlane/absent.py"]
    assert commands_in(text) == {"levitate"}
    assert exists("src/fourlane/{errors,units}.py")
    assert not exists("src/fourlane/{errors,absent}.py")
