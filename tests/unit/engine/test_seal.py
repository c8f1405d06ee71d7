"""The secret and its seal: what is refused."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourlane.engine.seal import SECRET_FILE_VARIABLE, Kind, Replays, Secret, open_seal, seal
from fourlane.errors import ProtocolError, SpecError

if TYPE_CHECKING:
    from pathlib import Path

SECRET = Secret(bytes(range(32)))


def test_a_created_secret_is_read_back_and_only_its_owner_can_read_the_file(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    created = Secret.create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Secret.read(path).mac(b"x") == created.mac(b"x")


def test_creating_a_secret_twice_leaves_the_first_one(tmp_path: Path) -> None:
    first = Secret.create(tmp_path / "secret")
    with pytest.raises(FileExistsError):
        Secret.create(tmp_path / "secret")
    assert Secret.read(tmp_path / "secret").mac(b"x") == first.mac(b"x")


def test_the_environment_names_the_secret_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    created = Secret.create(tmp_path / "secret")
    monkeypatch.setenv(SECRET_FILE_VARIABLE, str(tmp_path / "secret"))
    assert Secret.from_environment().mac(b"x") == created.mac(b"x")
    monkeypatch.delenv(SECRET_FILE_VARIABLE)
    with pytest.raises(SpecError, match="FOURLANE_SECRET_FILE: not set"):
        Secret.from_environment()


@pytest.mark.parametrize("text", ["", "abc", "0" * 62, "zz" * 32])
def test_a_secret_file_that_is_not_64_hexadecimal_digits_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "secret"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(SpecError, match="64 hexadecimal digits"):
        Secret.read(path)


def test_a_secret_file_that_everybody_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    Secret.create(path)
    os.chmod(path, 0o644)  # noqa: PTH101
    with pytest.raises(SpecError, match="chmod 600"):
        Secret.read(path)


def test_a_secret_does_not_show_itself() -> None:
    assert bytes(range(32)).hex() not in repr(SECRET)


@given(payload=st.binary(max_size=200), counter=st.integers(0, 2**64 - 1), kind=st.sampled_from(Kind))
def test_what_was_sealed_opens_as_it_was(payload: bytes, counter: int, kind: Kind) -> None:
    opened = open_seal(SECRET, b"who", seal(SECRET, b"who", kind, counter=counter, payload=payload, echo=b"e" * 16))
    assert (opened.kind, opened.counter, opened.echo, opened.payload) == (kind, counter, b"e" * 16, payload)


@given(data=st.data())
def test_any_changed_bit_breaks_the_seal(data: st.DataObject) -> None:
    frames = seal(SECRET, b"who", Kind.UP, counter=7, payload=b"some payload")
    part = data.draw(st.integers(0, 1))
    bit = data.draw(st.integers(0, len(frames[part]) * 8 - 1))
    changed = bytearray(frames[part])
    changed[bit // 8] ^= 1 << bit % 8
    frames[part] = bytes(changed)
    with pytest.raises(ProtocolError):
        open_seal(SECRET, b"who", frames)


@given(frames=st.lists(st.binary(max_size=80), max_size=4))
def test_garbage_never_opens(frames: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        open_seal(SECRET, b"who", frames)


def test_a_seal_for_another_address_or_of_another_secret_is_refused() -> None:
    frames = seal(SECRET, b"who", Kind.UP, counter=0, payload=b"x")
    with pytest.raises(ProtocolError, match="forged"):
        open_seal(SECRET, b"someone else", frames)
    with pytest.raises(ProtocolError, match="forged"):
        open_seal(Secret(bytes(32)), b"who", frames)


def test_another_version_is_named_in_the_refusal() -> None:
    frames = seal(SECRET, b"who", Kind.UP, counter=0, payload=b"x")
    frames[0] = frames[0][:2] + b"\x09" + frames[0][3:]
    with pytest.raises(ProtocolError, match="version 9; run one version"):
        open_seal(SECRET, b"who", frames)


def test_boundaries_between_parts_count_in_a_mac() -> None:
    assert SECRET.mac(b"ab", b"c") != SECRET.mac(b"a", b"bc")


def test_counters_must_grow_but_may_jump() -> None:
    replays = Replays()
    replays.check(0)
    replays.check(5)
    for counter in (5, 4, 0):
        with pytest.raises(ProtocolError, match="replayed"):
            replays.check(counter)
