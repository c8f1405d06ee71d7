"""Rendered files arrive all together, or nothing changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fourlane.errors import SpecError
from fourlane.lanes.render.folder import strangers, write_files

if TYPE_CHECKING:
    from pathlib import Path

FILES = {"nic/a.sh": "#!/bin/sh\necho a\n", "sonic/leaf.json": "{}\n", "sonic/spine.json": "{}\n"}


def content(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_all_files_are_written_and_scripts_can_be_run(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "rendered"
    written = write_files(FILES, folder)
    assert [path.relative_to(folder).as_posix() for path in written] == sorted(FILES)
    assert content(folder) == FILES
    assert (folder / "nic/a.sh").stat().st_mode & 0o777 == 0o755
    assert (folder / "sonic/leaf.json").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


def test_a_failure_in_the_middle_puts_back_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "rendered"
    write_files({"nic/a.sh": "old\n", "other/kept": "kept\n"}, folder)
    (folder / "sonic/spine.json").mkdir(parents=True)
    with pytest.raises(SpecError, match="nothing was changed"):
        write_files(FILES, folder)
    assert content(folder) == {"nic/a.sh": "old\n", "other/kept": "kept\n"}
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "a.sh",
        "kept",
        "nic",
        "other",
        "rendered",
        "sonic",
        "spine.json",
    ]


def test_a_folder_that_is_a_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("mine")
    with pytest.raises(SpecError, match="nothing was changed"):
        write_files(FILES, place)
    assert content(tmp_path) == {"file": "mine"}


def test_files_of_an_earlier_plan_are_named_and_left_alone(tmp_path: Path) -> None:
    write_files({"sonic/old.json": "{}\n", "eos/leaf.cfg": "!\n"}, tmp_path)
    write_files(FILES, tmp_path)
    assert strangers(FILES, tmp_path) == [tmp_path / "sonic/old.json"]
    assert (tmp_path / "sonic/old.json").exists()
