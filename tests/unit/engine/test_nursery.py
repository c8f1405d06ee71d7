"""The nursery: forks, reports, cleans up, sleeps."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import scripted_target
from hypothesis import given
from hypothesis import strategies as st

from fourlane.engine.nursery import (
    Exited,
    FrameBuffer,
    Kill,
    PreloadFailed,
    Ready,
    Spawn,
    Spawned,
    decode_from_nursery,
    encode_frame,
)
from fourlane.engine.rank_config import RankConfig
from fourlane.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fourlane.engine.nursery import FromNursery, ToNursery

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

PATIENCE_S = 20.0


class NurseryUnderTest:
    """A real nursery process and our end of its socket."""

    def __init__(self, run_dir: Path, *, preload: str = "scripted_target") -> None:
        self.run_dir = run_dir
        self._control, theirs = socket.socketpair()
        self._control.settimeout(PATIENCE_S)
        self._frames = FrameBuffer()
        self._waiting: list[FromNursery] = []
        command = [sys.executable, "-P", "-m", "fourlane.engine.nursery"]
        with theirs:
            self.process = subprocess.Popen(
                [*command, "--run-dir", str(run_dir), "--preload", preload],
                stdin=theirs.fileno(),
                env={**os.environ, "PYTHONPATH": str(Path(scripted_target.__file__).parent)},
            )

    def send(self, message: ToNursery) -> None:
        self._control.sendall(encode_frame(message))

    def spawn(self, function: str, rank: int = 0) -> int:
        """Have a rank forked and return its process id."""
        self.send(Spawn(config=self.config(rank), log=str(self.log), target=f"scripted_target:{function}"))
        spawned = self.recv()
        assert isinstance(spawned, Spawned)
        return spawned.pid

    def config(self, rank: int) -> RankConfig:
        return RankConfig(
            role="decode",
            rank=rank,
            ranks=rank + 1,
            model_path="",
            control_endpoint="ipc:///nowhere",
            secret_file="",
            run_dir=str(self.run_dir),
        )

    @property
    def log(self) -> Path:
        return self.run_dir / "rank.log"

    def recv(self) -> FromNursery:
        while not self._waiting:
            data = self._control.recv(65536)
            assert data, "the nursery closed its end"
            self._waiting += [decode_from_nursery(frame) for frame in self._frames.feed(data)]
        return self._waiting.pop(0)

    def close(self) -> None:
        self._control.close()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    return path


@pytest.fixture
def nursery(run_dir: Path) -> Iterator[NurseryUnderTest]:
    made = NurseryUnderTest(run_dir)
    try:
        assert isinstance(made.recv(), Ready)
        yield made
    finally:
        made.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            made.process.wait(PATIENCE_S)
        made.process.kill()
        made.process.wait()


def eventually(condition: Callable[[], bool], within_s: float = PATIENCE_S) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return condition()


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_rank_reports_its_start_and_its_exit_code_and_writes_to_its_log(nursery: NurseryUnderTest) -> None:
    pid = nursery.spawn("end_with_rank", rank=7)
    assert nursery.recv() == Exited(name="decode-7", pid=pid, status=7)
    assert "hello from decode-7" in nursery.log.read_text()


def test_an_error_of_fourlane_ends_a_rank_with_its_exit_code_and_message(nursery: NurseryUnderTest) -> None:
    nursery.spawn("refuse")
    exited = nursery.recv()
    assert isinstance(exited, Exited)
    assert exited.status == 3
    assert nursery.log.read_text() == "MemoryShortage: decode-0: needs 9 GiB, there are 2\n"


def test_a_defect_ends_a_rank_with_status_70_and_a_traceback_and_the_nursery_goes_on(nursery: NurseryUnderTest) -> None:
    nursery.spawn("crash")
    exited = nursery.recv()
    assert isinstance(exited, Exited)
    assert exited.status == 70
    assert "ZeroDivisionError" in nursery.log.read_text()
    nursery.spawn("end_with_rank", rank=1)
    assert isinstance(nursery.recv(), Exited)


def test_a_rank_has_a_name_and_a_session_of_its_own_and_ignores_ctrl_c(nursery: NurseryUnderTest) -> None:
    nursery.spawn("describe")
    nursery.recv()
    name, ignores_sigint, leads_session, threads, stdin, open_files = (
        (nursery.run_dir / "described").read_text().split()
    )
    assert (name, ignores_sigint, leads_session, threads, stdin) == ("decode-0", "True", "True", "1", "/dev/null")
    assert int(open_files) <= 6, "a rank keeps none of the nursery's sockets"


def test_a_killed_rank_is_reported_with_its_signal(nursery: NurseryUnderTest) -> None:
    pid = nursery.spawn("sleep")
    nursery.send(Kill(pid=pid))
    assert nursery.recv() == Exited(name="decode-0", pid=pid, status=-signal.SIGKILL)


def test_the_nursery_never_kills_a_process_that_is_not_its_own(nursery: NurseryUnderTest) -> None:
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        nursery.send(Kill(pid=stranger.pid))
        nursery.spawn("end_with_rank")
        nursery.recv()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_many_ranks_that_end_at_once_are_all_reported(nursery: NurseryUnderTest) -> None:
    for rank in range(20):
        nursery.send(Spawn(config=nursery.config(rank), log=str(nursery.log), target="scripted_target:end_with_rank"))
    seen = [nursery.recv() for _ in range(40)]
    assert sorted(message.status for message in seen if isinstance(message, Exited)) == list(range(20))


def test_when_the_gateway_goes_ranks_the_folder_and_the_nursery_go(nursery: NurseryUnderTest) -> None:
    pids = [nursery.spawn("sleep", rank) for rank in range(3)]
    nursery.close()
    assert nursery.process.wait(PATIENCE_S) == 0
    assert all(gone(pid) for pid in pids)
    assert not nursery.run_dir.exists()


def test_when_the_nursery_is_killed_the_kernel_kills_its_ranks(nursery: NurseryUnderTest) -> None:
    pids = [nursery.spawn("sleep", rank) for rank in range(2)]
    nursery.process.kill()
    assert eventually(lambda: all(gone(pid) for pid in pids))


def test_ctrl_c_does_not_end_the_nursery(nursery: NurseryUnderTest) -> None:
    nursery.process.send_signal(signal.SIGINT)
    nursery.spawn("end_with_rank")
    assert isinstance(nursery.recv(), Exited)


def test_an_idle_nursery_uses_no_processor_time(nursery: NurseryUnderTest) -> None:
    def ticks() -> int:
        fields = Path(f"/proc/{nursery.process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    nursery.spawn("sleep")
    before = ticks()
    time.sleep(1.0)
    assert ticks() - before <= 1


def test_a_missing_module_is_named(run_dir: Path) -> None:
    nursery = NurseryUnderTest(run_dir, preload="a_module_nobody_has")
    failure = nursery.recv()
    assert isinstance(failure, PreloadFailed)
    assert failure.missing == "a_module_nobody_has"
    assert nursery.process.wait(PATIENCE_S) == 3
    nursery.close()


@given(sizes=st.lists(st.integers(0, 300), max_size=20), cuts=st.lists(st.integers(1, 400), min_size=1, max_size=30))
def test_frames_come_out_whole_however_the_bytes_are_cut(sizes: list[int], cuts: list[int]) -> None:
    bodies = [bytes([index % 256]) * size for index, size in enumerate(sizes)]
    stream = b"".join(len(body).to_bytes(4, "big") + body for body in bodies)
    buffer, place = FrameBuffer(), 0
    found: list[bytes] = []
    while place < len(stream):
        cut = cuts[place % len(cuts)]
        found += buffer.feed(stream[place : place + cut])
        place += cut
    assert found == bodies


def test_a_frame_too_long_to_be_true_is_refused() -> None:
    with pytest.raises(ProtocolError, match="2147483648 bytes"):
        FrameBuffer().feed(b"\x80\x00\x00\x00")


def test_what_is_no_message_is_refused() -> None:
    with pytest.raises(ProtocolError, match="malformed"):
        decode_from_nursery(b"\x01")
