"""The run folder: private, short enough for sockets, gone afterwards."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fourlane.errors import SpecError
from fourlane.gateway.run_dir import RunDir

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def short() -> Iterator[Path]:
    """Return an empty folder with a path short enough for sockets, whatever pytest's is called."""
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    yield path
    shutil.rmtree(path)


def test_a_temporary_folder_is_its_owners_alone_and_can_be_removed_twice() -> None:
    run_dir = RunDir()
    try:
        assert run_dir.path.stat().st_mode & 0o777 == 0o700
        assert len(str(run_dir.path / "kv-decode-1023")) < 108
    finally:
        run_dir.remove()
    run_dir.remove()
    assert not run_dir.path.exists()


def test_a_temporary_folder_has_a_short_path_even_if_that_for_temporary_files_has_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    run_dir = RunDir()
    run_dir.remove()
    assert len(str(run_dir.path)) < 60
    assert list(deep.iterdir()) == []


def test_a_folder_that_holds_files_is_refused_and_left_as_it_was(short: Path) -> None:
    (short / "precious").write_text("work")
    with pytest.raises(SpecError, match="holds files"):
        RunDir(short)
    assert (short / "precious").read_text() == "work"


def test_a_path_too_long_for_sockets_is_refused_with_its_length() -> None:
    with pytest.raises(SpecError, match="at most 67 are allowed"):
        RunDir(Path("/tmp") / ("x" * 80))


def test_the_tail_of_a_log_is_its_last_lines(short: Path) -> None:
    run_dir = RunDir(short / "r")
    assert run_dir.tail_of("decode-0") == ""
    run_dir.log_of("decode-0").write_text("".join(f"line {number}\n" for number in range(5000)))
    assert run_dir.tail_of("decode-0", lines=2) == "line 4998\nline 4999"
