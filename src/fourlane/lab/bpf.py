"""eBPF without a compiler: assemble instructions, load them by the bpf() system call, read their map.

For the few short programs of the lab, so that it needs neither clang nor libbpf nor a pinned file:
programs and maps live as long as a descriptor or a filter holds them. Not a general assembler:
it knows the instructions those programs use.

Source: Linux Documentation/bpf/standardization/instruction-set.rst, include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from contextlib import suppress
from pathlib import Path

from fourlane.errors import EnvironmentMissing

__all__ = ["ArrayMap", "Assembler", "load_classifier", "why_not_loadable"]

_SYSTEM_CALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_MAP_CREATE, _MAP_LOOKUP, _PROGRAM_LOAD = 0, 1, 5
_ARRAY_MAP, _CLASSIFIER = 2, 3
_LOG_BYTES = 1 << 16

_WIDTH = {1: 0x10, 2: 0x08, 4: 0x00, 8: 0x18}
_ARITHMETIC = {"+": 0x00, "-": 0x10, "*": 0x20, "&": 0x50, ">>": 0x70}
_COMPARISON = {"==": 0x10, ">": 0x20, ">=": 0x30, "!=": 0x50, "<": 0xA0, "<=": 0xB0}
_FETCH_ADD, _COMPARE_EXCHANGE, _ADD = 0x01, 0xF1, 0x00


class Assembler:
    """Write instructions one call each; jumps name labels that `label` sets later.

    Registers are their numbers, 0 to 10. A `value` is a register when given as `register=`, a
    number of at most 31 bits and a sign when given as `value=`.
    """

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int, int]] = []
        self._labels: dict[str, int] = {}
        self._jumps: list[tuple[int, str]] = []

    def move(self, to: int, *, register: int | None = None, value: int = 0) -> None:
        """Write `to = register` or `to = value`."""
        self._emit(0xB7 if register is None else 0xBF, to, register or 0, 0, value)

    def move_wide(self, to: int, value: int) -> None:
        """Write `to = value` for an unsigned number of up to 64 bits."""
        self._emit(0x18, to, 0, 0, _signed(value & 0xFFFFFFFF))
        self._emit(0, 0, 0, 0, _signed(value >> 32))

    def map_address(self, to: int, map_descriptor: int) -> None:
        """Write `to = address of the map` behind a descriptor."""
        self._emit(0x18, to, 1, 0, map_descriptor)
        self._emit(0, 0, 0, 0, 0)

    def compute(self, to: int, operation: str, *, register: int | None = None, value: int = 0) -> None:
        """Write `to = to operation register` (or value), in 64 bits unsigned."""
        source = 0x00 if register is None else 0x08
        self._emit(0x07 | source | _ARITHMETIC[operation], to, register or 0, 0, value)

    def load(self, to: int, base: int, offset: int, *, width: int) -> None:
        """Write `to = memory[base + offset]`, `width` bytes."""
        self._emit(0x61 | _WIDTH[width], to, base, offset, 0)

    def store(self, base: int, offset: int, value: int, *, width: int) -> None:
        """Write `memory[base + offset] = value`, `width` bytes."""
        self._emit(0x62 | _WIDTH[width], base, 0, offset, value)

    def load_packet_byte(self, offset: int) -> None:
        """Write `r0 = byte of the packet`; r6 holds the context; a packet too short ends the program with 0."""
        self._emit(0x30, 0, 0, 0, offset)

    def atomic_add(self, base: int, offset: int, register: int) -> None:
        """Write `memory[base + offset] += register`, 8 bytes, whole."""
        self._emit(0xDB, base, register, offset, _ADD)

    def atomic_fetch_add(self, base: int, offset: int, register: int) -> None:
        """Write `register = memory[base + offset]; memory += the old register`, 8 bytes, whole."""
        self._emit(0xDB, base, register, offset, _FETCH_ADD)

    def atomic_compare_exchange(self, base: int, offset: int, register: int) -> None:
        """Write `if memory[base + offset] == r0: memory = register`, r0 being what was there."""
        self._emit(0xDB, base, register, offset, _COMPARE_EXCHANGE)

    def jump_if(self, left: int, comparison: str, label: str, *, register: int | None = None, value: int = 0) -> None:
        """Write a jump to `label` if `left comparison register` (or value), unsigned."""
        self._jumps.append((len(self._code), label))
        self._emit(0x05 | (0 if register is None else 0x08) | _COMPARISON[comparison], left, register or 0, 0, value)

    def call(self, helper: int) -> None:
        """Write a call of a kernel helper by number: arguments in r1 to r5, its result in r0."""
        self._emit(0x85, 0, 0, 0, helper)

    def exit(self) -> None:
        """Write the end: the program returns r0."""
        self._emit(0x95, 0, 0, 0, 0)

    def label(self, name: str) -> None:
        """Name the next instruction."""
        self._labels[name] = len(self._code)

    def assemble(self) -> bytes:
        """Return the instructions, jumps resolved."""
        code = list(self._code)
        for at, label in self._jumps:
            opcode, to, source, _, value = code[at]
            code[at] = (opcode, to, source, self._labels[label] - at - 1, value)
        return b"".join(struct.pack("<BBhi", op, src << 4 | dst, offset, value) for op, dst, src, offset, value in code)

    def _emit(self, opcode: int, to: int, source: int, offset: int, value: int) -> None:
        self._code.append((opcode, to, source, offset, value))


class ArrayMap:
    """An array map of one entry: memory that a program and this process share.

    Args:
        size: bytes of the entry.

    Raises:
        EnvironmentMissing: the kernel refuses.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        attributes = struct.pack("<IIIII", _ARRAY_MAP, 4, size, 1, 0)
        self.descriptor = _bpf(_MAP_CREATE, attributes, what="create an eBPF map")

    def read(self) -> bytes:
        """Return the entry as it is now."""
        key = ctypes.c_uint32(0)
        entry = ctypes.create_string_buffer(self.size)
        addresses = (ctypes.addressof(key), ctypes.addressof(entry))
        _bpf(_MAP_LOOKUP, struct.pack("<IxxxxQQQ", self.descriptor, *addresses, 0), what="read an eBPF map")
        return entry.raw

    def close(self) -> None:
        """Let go of the map; a loaded program keeps it."""
        with suppress(OSError):
            os.close(self.descriptor)


def load_classifier(code: bytes, name: str) -> int:
    """Load a program for tc's bpf classifier and return its descriptor.

    Args:
        code: what `Assembler.assemble` returned; helpers that only GPL programs may call are allowed.
        name: at most 15 characters, shown by `tc filter show`.

    Raises:
        EnvironmentMissing: the kernel refuses; the message ends with what its verifier said.
    """
    instructions = ctypes.create_string_buffer(code, len(code))
    log, license_ = ctypes.create_string_buffer(_LOG_BYTES), ctypes.create_string_buffer(b"GPL")
    addresses = (ctypes.addressof(instructions), ctypes.addressof(license_))
    head = struct.pack("<IIQQ", _CLASSIFIER, len(code) // 8, *addresses)
    tail = struct.pack("<II16s", 0, 0, name.encode()[:15])
    no_log, with_log = struct.pack("<IIQ", 0, 0, 0), struct.pack("<IIQ", 1, _LOG_BYTES, ctypes.addressof(log))
    try:
        return _bpf(_PROGRAM_LOAD, head + no_log + tail, what="load an eBPF program")
    except EnvironmentMissing as first:
        with suppress(EnvironmentMissing):
            return _bpf(_PROGRAM_LOAD, head + with_log + tail, what="load an eBPF program")
        verdict = log.value.decode(errors="replace").strip().splitlines()[-3:]
        raise EnvironmentMissing("\n".join([str(first), *verdict])) from None


def why_not_loadable() -> str | None:
    """Return why this process may not load eBPF programs, or None if it may; tries one that does nothing."""
    nothing = Assembler()
    nothing.move(0, value=-1)
    nothing.exit()
    try:
        os.close(load_classifier(nothing.assemble(), "probe"))
    except EnvironmentMissing as refusal:
        return str(refusal)
    return None


def _bpf(command: int, attributes: bytes, *, what: str) -> int:
    """Call bpf(); return what it returns."""
    number = _SYSTEM_CALL.get(platform.machine())
    if number is None:
        raise EnvironmentMissing(f"cannot {what}: the bpf() call of {platform.machine()} is not known here")
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    library = ctypes.CDLL(None, use_errno=True)
    result = library.syscall(ctypes.c_long(number), ctypes.c_long(command), buffer, ctypes.c_ulong(len(attributes)))
    if result < 0:
        code = ctypes.get_errno()
        raise EnvironmentMissing(f"cannot {what}: {os.strerror(code)}{_advice(code)}")
    return result


def _advice(code: int) -> str:
    if code not in (errno.EPERM, errno.EACCES):
        return ""
    setting = Path("/proc/sys/kernel/unprivileged_bpf_disabled")
    found = f" ({setting.name} is {setting.read_text(encoding='ascii').strip()})" if setting.exists() else ""
    return f"{found}; run as root, or with CAP_BPF and CAP_NET_ADMIN outside of user namespaces"


def _signed(word: int) -> int:
    """Return a 32-bit word as the signed number the instruction format holds."""
    return word - (1 << 32) if word >> 31 else word
