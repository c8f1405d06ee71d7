"""Anonymous network namespaces that nothing outlives, and running programs and Python functions inside them.

A `Namespaces` starts a keeper (`keeper.py`), which holds them. It lives no longer than the thread that made
it: when that thread or its process ends, in whatever way, everything inside the namespaces is killed and
the namespaces are gone. As root the namespaces are the machine's; as a plain user they belong to a user
namespace of their own.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from fourlane.errors import EnvironmentMissing, LabError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

__all__ = ["Call", "Namespaces", "enter_arguments", "needs_user_namespace"]

START_S = 20.0
"""How long the keeper may take to make the namespaces (it takes about 0.1 s on an idle machine)."""
COMMAND_S = 20.0
END_S = 5.0
_PATHS_OF_ROOT = "/usr/local/sbin:/usr/sbin:/sbin"


class Call:
    """A Python function that runs in a host; `result` waits for what it returns.

    Args:
        where: host and function, for messages.
        sock: this side's end of the function's channel.
    """

    def __init__(self, where: str, sock: socket.socket) -> None:
        self._where = where
        self._sock = sock
        self._buffer = b""

    def heard(self, timeout_s: float) -> Any:
        """Return the next value the function says.

        Raises:
            LabError: it failed, returned without saying anything more, or was silent for `timeout_s`.
        """
        message = self._next(timeout_s)
        if "said" not in message:
            raise LabError(f"{self._where}: ended with {message} instead of going on")
        return message["said"]

    def stop(self) -> Self:
        """Tell the function that it shall end."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
        return self

    def result(self, timeout_s: float) -> Any:
        """Return what the function returns; what it says before is skipped.

        Raises:
            LabError: it raised, died, or did not end within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while "returned" not in (message := self._next(deadline - time.monotonic())):
            pass
        self.close()
        return message["returned"]

    def close(self) -> None:
        """Hear no more of it; a function that asks `stopped` ends, one that speaks is ended by that."""
        self._sock.close()

    def _next(self, timeout_s: float) -> dict[str, Any]:
        self._sock.settimeout(max(timeout_s, 0.001))
        while b"\n" not in self._buffer:
            try:
                data = self._sock.recv(1 << 18)
            except TimeoutError:
                raise LabError(f"{self._where}: nothing heard for {timeout_s:.1f} s") from None
            if not data:
                self.close()
                raise LabError(f"{self._where}: its process died")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        message = json.loads(line)
        if "failed" in message:
            self.close()
            raise LabError(f"{self._where}: {message['failed']}")
        return message


class Namespaces:
    """A set of named network namespaces, loopback up, nothing else in them.

    Args:
        names: of letters, digits and "-"; unique.

    Raises:
        EnvironmentMissing: this machine does not let this user make network namespaces.
        LabError: the keeper did not come up in time.
    """

    def __init__(self, names: Sequence[str]) -> None:
        assert len(set(names)) == len(names), names
        self.user = needs_user_namespace()
        for program in ("ip", "tc", "nsenter", "setpriv"):
            program_path(program)
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        task = {"names": list(names), "user": self.user, "control": theirs.fileno(), "parent": os.getpid()}
        with theirs:
            self._keeper = subprocess.Popen(
                [sys.executable, "-P", "-m", "fourlane.lab.keeper", json.dumps(task)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is this process's business
            )
        try:
            self.holders: dict[str, int] = self._ask_start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def keeper_pid(self) -> int:
        """Return the keeper's process id."""
        return self._keeper.pid

    def enter(self, name: str) -> list[str]:
        """Return the words to put before a command so that it runs in the namespace, for a shell or `subprocess`."""
        return enter_arguments(self.holders[name], user=self.user)

    def start(self, name: str, command: Sequence[str], **settings: Any) -> subprocess.Popen[Any]:
        """Start a program in the namespace; it is killed when this process dies.

        Args:
            settings: of `subprocess.Popen`.
        """
        words = [*self.enter(name), program_path("setpriv"), "--pdeathsig", "KILL", "--", *command]
        return subprocess.Popen(words, **settings)

    def run(self, name: str, command: Sequence[str], *, text: str = "", timeout_s: float = COMMAND_S) -> str:
        """Run a program in the namespace to its end and return what it wrote.

        Args:
            text: its standard input.

        Raises:
            LabError: it failed or took longer than `timeout_s`.
        """
        process = self.start(
            name, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        shown = f"{name}: {' '.join(command)}"
        with process:
            try:
                out, complaints = process.communicate(text, timeout=timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                raise LabError(f"{shown}: did not end within {timeout_s:.0f} s") from None
            except BaseException:
                process.kill()
                raise
        if process.returncode != 0:
            raise LabError(f"{shown}: {_complaint(complaints, text) or f'ended with {process.returncode}'}")
        return out

    def call(self, name: str, target: str, **arguments: object) -> Call:
        """Start a Python function in the namespace, in a process of its own.

        Args:
            target: "module:function"; it is called with a `Channel` and the arguments, which are sent as JSON.
        """
        ours, theirs = socket.socketpair()
        request: dict[str, object] = {"do": "call", "host": name, "target": target, "arguments": arguments}
        with theirs:
            self._send(request, theirs)
        self._receive(START_S)
        return Call(f"{name}: {target.rpartition(':')[2]}", ours)

    def check(self) -> None:
        """See that the namespaces are still held.

        Raises:
            LabError: the keeper has ended.
        """
        if self._keeper.poll() is not None:
            raise LabError(f"lab keeper (process {self._keeper.pid}): ended with {self._keeper.returncode}")

    def close(self) -> None:
        """Kill everything in the namespaces and take them down."""
        self._control.close()
        try:
            self._keeper.wait(END_S)
        except subprocess.TimeoutExpired:
            self._keeper.kill()  # the holders die with it
            self._keeper.wait(END_S)

    def _ask_start(self) -> dict[str, int]:
        answer = self._receive(START_S)
        if "failed" in answer:
            raise _cannot_make(answer, user=self.user)
        return answer["holders"]

    def _send(self, request: dict[str, object], descriptor: socket.socket) -> None:
        try:
            socket.send_fds(self._control, [json.dumps(request).encode()], [descriptor.fileno()])
        except OSError as error:
            raise LabError(f"lab keeper (process {self._keeper.pid}): {error.strerror}; it has ended") from None

    def _receive(self, timeout_s: float) -> dict[str, Any]:
        self._control.settimeout(timeout_s)
        try:
            data = self._control.recv(1 << 18)
        except TimeoutError:
            raise LabError(f"lab keeper (process {self._keeper.pid}): no answer within {timeout_s:.0f} s") from None
        if not data:
            raise LabError(f"lab keeper (process {self._keeper.pid}): ended without an answer")
        return json.loads(data)


def needs_user_namespace() -> bool:
    """Tell whether this process must make a user namespace first: it may not administer the network here."""
    effective = Path("/proc/self/status").read_text(encoding="ascii").partition("CapEff:")[2].split()[0]
    admin_net, admin_sys = 1 << 12, 1 << 21
    wanted = admin_net | admin_sys
    return int(effective, 16) & wanted != wanted


def enter_arguments(pid: int, *, user: bool) -> list[str]:
    """Return the `nsenter` command that enters the network namespace of a process."""
    words = [program_path("nsenter"), "--target", str(pid), "--net"]
    return [*words, "--user", "--preserve-credentials"] if user else words


def program_path(name: str) -> str:
    """Return where a program is; also looks where only root's PATH leads.

    Raises:
        EnvironmentMissing: it is not installed.
    """
    found = shutil.which(name) or shutil.which(name, path=_PATHS_OF_ROOT)
    if found is None:
        package = {"ip": "iproute2", "tc": "iproute2", "nft": "nftables"}.get(name, "util-linux")
        raise EnvironmentMissing(f"lab: the program {name!r} is not installed: install the package {package}")
    return found


def _cannot_make(answer: dict[str, Any], *, user: bool) -> Exception:
    if answer.get("errno") not in (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EINVAL, errno.ENOSYS):
        return LabError(f"lab: {answer['failed']}")
    mend = "run as root" if user else "run outside a container that forbids it, or give it CAP_SYS_ADMIN"
    if user and answer.get("errno") == errno.ENOSPC:
        mend += ", or raise user.max_user_namespaces and user.max_net_namespaces (sysctl)"
    elif user:
        mend += (
            ", or let plain users make namespaces: sysctl kernel.unprivileged_userns_clone=1 (Debian) or "
            "kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu 23.10 and newer)"
        )
    return EnvironmentMissing(f"lab: this machine does not let this user make namespaces: {answer['failed']}; {mend}")


def _complaint(complaints: str, text: str) -> str:
    """Return what a program complained of; for a batch, with the line it complained of."""
    lines = complaints.strip().splitlines()
    for line in lines:
        number = line.removeprefix("Command failed -:")
        if number != line and number.isdigit():
            given = text.splitlines()
            lines.append(f"line {number}: {given[int(number) - 1]}")
    return "; ".join(lines)
