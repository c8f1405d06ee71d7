"""The keeper: a small process that holds a lab's network namespaces and runs Python functions inside them.

Started by `namespaces.py` as a program of its own, so that it has one thread and may fork and change
namespaces freely. Each namespace belongs to a holder, a forked process that only sleeps. Whatever ends the
process that started the keeper, SIGKILL included, ends the keeper; the holders die with the keeper, and the
kernel takes down namespaces, links and queues with them. Before it ends the keeper kills every process that
is still inside one of its namespaces.

Only the standard library is imported here: it is on the way of every bring-up.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib
import json
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Channel", "main"]

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
SIOCGIFFLAGS, SIOCSIFFLAGS = 0x8913, 0x8914
IFF_UP = 1
NICE = -10
SWEEP_S = 2.0
"""How long the keeper kills processes that are left in its namespaces before it gives up."""

_libc = ctypes.CDLL(None, use_errno=True)


class Channel:
    """What a function run in a host talks through: `say` sends a value, `stopped` asks whether to end.

    Args:
        sock: the function's end of a stream socket; the other end is a `Call`.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def say(self, value: object) -> None:
        """Send one value, as JSON."""
        self._send({"said": value})

    def stopped(self, wait_s: float = 0.0) -> bool:
        """Tell whether the caller wants an end, waiting up to `wait_s` for that."""
        return _readable({self._sock.fileno()}, max(0.0, wait_s)) != set()

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when the caller wants an end."""
        return self._sock.fileno()

    def finish(self, outcome: dict[str, object]) -> None:
        """Send the outcome and close."""
        self._send(outcome)
        self._sock.close()

    def _send(self, message: dict[str, object]) -> None:
        self._sock.sendall(json.dumps(message).encode() + b"\n")


class _Keeper:
    """Namespaces, the processes in them, and the loop that serves requests until its end."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._holders: dict[str, int] = {}
        self._running: set[int] = set()
        self._ending = False

    def start(self, names: list[str], *, user: bool) -> None:
        """Make the namespaces and say which process holds each."""
        _come_first()
        if user:
            _become_root_of_own_user_namespace()
        for name in names:
            self._holders[name] = _fork_holder(name)
        self._answer({"holders": self._holders})

    def serve(self) -> None:
        """Answer requests until SIGTERM, or until the other end is gone."""
        wake, wake_in = os.pipe()
        os.set_blocking(wake_in, False)
        signal.set_wakeup_fd(wake_in, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while not self._ending:
            readable = _readable({self._control.fileno(), wake})
            if wake in readable:
                os.read(wake, 512)
            self._reap()
            if self._control.fileno() in readable and not self._handle():
                break

    def close(self) -> None:
        """Kill everything that runs in the namespaces, then the holders."""
        inside = {namespace for pid in self._holders.values() if (namespace := _namespace(pid)) is not None}
        own = {os.getpid(), *self._holders.values()}
        deadline = time.monotonic() + SWEEP_S
        while time.monotonic() < deadline and (left := _processes_in(inside) - own):
            _kill(left)
            time.sleep(0.005)
            self._reap()
        _kill(set(self._holders.values()))

    def _end(self, *_: object) -> None:
        self._ending = True

    def _handle(self) -> bool:
        """Serve one request; False when the other end is gone."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, 1 << 18, 1)
        except OSError:
            return False
        if not data:
            return False
        request = json.loads(data)
        if request["do"] == "call":
            self._call(request, descriptors[0])
        elif request["do"] == "kill" and request["pid"] in self._running:
            _kill({request["pid"]})
        return True

    def _call(self, request: dict[str, object], descriptor: int) -> None:
        sock = socket.socket(fileno=descriptor)
        keeper = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._control.close()
            _in_child(lambda: _run_call(request, self._holders[str(request["host"])], Channel(sock), keeper))
        sock.close()
        self._running.add(pid)
        self._answer({"pid": pid})

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                self._running.discard(pid)

    def _answer(self, message: dict[str, object]) -> None:
        self._control.send(json.dumps(message).encode())


def _come_first() -> None:
    """Let this process, and what it starts, come before what else the machine does, if this user may say so.

    Where the kernel shares processors out by session first (autogroups), the session counts. Not real-time: probes
    that never wait would then keep each other from running.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICE), encoding="ascii")


def _become_root_of_own_user_namespace() -> None:
    uid, gid = os.geteuid(), os.getegid()
    _check(_libc.unshare(CLONE_NEWUSER), "unshare(CLONE_NEWUSER)")
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        try:
            Path(f"/proc/self/{name}").write_text(text, encoding="ascii")
        except OSError as error:
            raise OSError(error.errno, f"writing {text!r} to /proc/self/{name}: {error.strerror}") from error
    _die_with_parent(signal.SIGTERM)  # a change of credentials has cleared it


def _fork_holder(name: str) -> int:
    """Fork a process with a network namespace of its own, loopback up, that sleeps until it is killed."""
    ready, ready_in = os.pipe()
    keeper = os.getpid()
    pid = os.fork()
    if pid == 0:
        _in_child(lambda: _hold(name, ready_in, keeper))
    os.close(ready_in)
    with os.fdopen(ready, "rb") as pipe:
        said = pipe.read().decode()
    if said != "ready":
        raise OSError(said or f"the holder of {name} ended at once")
    return pid


def _hold(name: str, ready_in: int, keeper: int) -> None:
    try:
        _libc.prctl(PR_SET_NAME, f"lab:{name}".encode()[:15], 0, 0, 0)
        _check(_libc.unshare(CLONE_NEWNET), "unshare(CLONE_NEWNET)")
        _die_with_parent(signal.SIGKILL, keeper)
        _loopback_up()
    except OSError as error:
        os.write(ready_in, str(error).encode())
        return
    os.write(ready_in, b"ready")
    os.closerange(0, 256)
    while True:
        signal.pause()


def _run_call(request: dict[str, object], holder: int, channel: Channel, keeper: int) -> None:
    """Run the function asked for inside the holder's namespace and send what it returns, or why it did not."""
    try:
        with Path(f"/proc/{holder}/ns/net").open("rb") as namespace:
            _check(_libc.setns(namespace.fileno(), CLONE_NEWNET), "setns(CLONE_NEWNET)")
        _die_with_parent(signal.SIGKILL, keeper)
        _libc.prctl(PR_SET_NAME, f"lab:{request['host']}".encode()[:15], 0, 0, 0)
        module, _, name = str(request["target"]).partition(":")
        arguments = request["arguments"]
        assert isinstance(arguments, dict)
        value = getattr(importlib.import_module(module), name)(channel, **arguments)
    except Exception as error:  # noqa: BLE001 - whatever it is, the caller hears of it
        channel.finish({"failed": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()})
    else:
        channel.finish({"returned": value})


def _in_child(work: Callable[[], None]) -> NoReturn:
    """Do the work of a forked child and end it, whatever happens, without running the parent's code."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        work()
        status = 0
    except BrokenPipeError:
        pass  # nobody listens any more
    except BaseException:  # noqa: BLE001 - even SystemExit must not unwind into the keeper
        traceback.print_exc()
    os._exit(status)


def _readable(descriptors: set[int], wait_s: float | None = None) -> set[int]:
    """Return which of the descriptors can be read, waiting for one."""
    poller = select.poll()
    for descriptor in descriptors:
        poller.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poller.poll(None if wait_s is None else wait_s * 1e3)}


def _die_with_parent(number: int, parent: int | None = None) -> None:
    _check(_libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")
    if parent is not None and os.getppid() != parent:
        os._exit(1)  # it died before the kernel knew


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        asked = fcntl.ioctl(sock, SIOCGIFFLAGS, struct.pack("16sH14x", b"lo", 0))
        (flags,) = struct.unpack_from("H", asked, 16)
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


def _processes_in(namespaces: set[Path]) -> set[int]:
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return {pid for pid in pids if _namespace(pid) in namespaces}


def _namespace(pid: int) -> Path | None:
    """Return what names a process's network namespace; None if it has ended or is not ours to see."""
    try:
        return Path(f"/proc/{pid}/ns/net").readlink()
    except OSError:
        return None


def _kill(pids: set[int]) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def main() -> int:
    """Be the keeper: the one argument says the namespaces' names, the control socket and the parent."""
    task = json.loads(sys.argv[1])
    _die_with_parent(signal.SIGTERM, task["parent"])
    with socket.socket(fileno=task["control"]) as control:
        keeper = _Keeper(control)
        try:
            keeper.start(task["names"], user=task["user"])
            keeper.serve()
        except OSError as error:
            with contextlib.suppress(OSError):
                control.send(json.dumps({"failed": str(error), "errno": error.errno}).encode())
            return 1
        finally:
            keeper.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
