"""Walls that the Linux kernel puts around the calling process and all that it starts. Needs only the standard library.

Two mechanisms, neither of which needs root, and both of which hold until the process ends: a seccomp filter decides
which system calls go through (a program of classic BPF over their numbers and arguments), and a Landlock ruleset
decides which files may be opened. What they refuse fails with ``EPERM`` or ``EACCES``, a ``PermissionError`` in Python.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
import sys
from collections.abc import Iterable, Sequence

_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _JUMP_EQUAL, _JUMP_ABOVE, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_SET_SECCOMP, _FILTER, _NO_NEW_PRIVILEGES, _PARENT_DEATH_SIGNAL = 22, 2, 38, 1
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_READ_FILE, _READ_FOLDER = 1 << 2, 1 << 3
_CLONE_THREAD = 0x10000
_OWNERS = (8, 10, 15)
"""fcntl's F_SETOWN, F_SETSIG and F_SETOWN_EX: with them a process could have signals sent to another one."""

_FREE = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "fstat": (5, 80), "lseek": (8, 62), "mmap": (9, 222),
    "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "mremap": (25, 216), "madvise": (28, 233),
    "msync": (26, 227), "mincore": (27, 232), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137),
    "rt_sigsuspend": (130, 133), "sigaltstack": (131, 132), "pread64": (17, 67), "pwrite64": (18, 68),
    "readv": (19, 65), "writev": (20, 66), "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439),
    "stat": (4, None), "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291), "getdents64": (217, 61),
    "readlink": (89, None), "readlinkat": (267, 78), "getcwd": (79, 17), "dup": (32, 23), "dup2": (33, None),
    "dup3": (292, 24), "pipe": (22, None), "pipe2": (293, 59), "poll": (7, None), "ppoll": (271, 73),
    "select": (23, None), "pselect6": (270, 72), "epoll_create": (213, None), "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22), "eventfd2": (290, 19),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "nanosleep": (35, 101),
    "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153), "getrusage": (98, 165), "getcpu": (309, 168),
    "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "getresuid": (118, 148), "getresgid": (120, 150),
    "getgroups": (115, 158), "getpgrp": (111, None), "getpgid": (121, 155), "getsid": (124, 156), "futex": (202, 98),
    "futex_waitv": (449, 449), "set_robust_list": (273, 99), "get_robust_list": (274, 100), "rseq": (334, 293),
    "set_tid_address": (218, 96), "membarrier": (324, 283), "sched_yield": (24, 124), "sched_getaffinity": (204, 123),
    "sched_getscheduler": (145, 120), "sched_getparam": (143, 121), "getrandom": (318, 278), "uname": (63, 160),
    "sysinfo": (99, 179), "exit": (60, 93), "exit_group": (231, 94), "wait4": (61, 260), "waitid": (247, 95),
    "restart_syscall": (219, 128), "recvfrom": (45, 207), "getsockopt": (55, 209), "shutdown": (48, 210),
    "alarm": (37, None), "setitimer": (38, 103), "getitimer": (36, 102), "pause": (34, None),
    "arch_prctl": (158, None), "getrlimit": (97, 163),
}  # fmt: skip
"""Calls that a computation may make whatever their arguments: their numbers on x86_64 and on aarch64."""

_CHECKED = {
    "open": (2, None), "openat": (257, 56), "clone": (56, 220), "clone3": (435, 435), "kill": (62, 129),
    "tgkill": (234, 131), "prlimit64": (302, 261), "socketpair": (53, 199), "sendto": (44, 206), "ioctl": (16, 29),
    "fcntl": (72, 25), "prctl": (157, 167), "socket": (41, 198), "io_uring_setup": (425, 425),
}  # fmt: skip
_Instruction = tuple[int, int, int, int]


class Refused(OSError):
    """The kernel does not put up a wall; the text says which one and why."""


# ------------------------------------------------------------------------------------------------------------ the walls
def deny_network() -> None:
    """From here on no socket but a local one (``AF_UNIX``) can be made, in this process and all that it starts.

    Raises:
        Refused: no seccomp here, or a machine whose calls are not known.
    """
    code = [
        *_when("socket", _allow_if(0, (socket.AF_UNIX, 16))),  # 16: netlink, which asks the kernel and nobody else
        *_when("io_uring_setup", [_refuse()]),  # its queue would make sockets past this filter
        (_RETURN, 0, 0, _ALLOW),
    ]
    _load(code)


def allow_only_computing() -> None:
    """From here on this process can compute, read files, and write to what is open, and nothing else.

    No file is made, changed or removed, no program or process started, no socket made, no other process signalled, no
    limit raised. Threads are allowed.

    Raises:
        Refused: as ``deny_network``.
    """
    own = os.getpid()
    changing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
    code = [
        *(step for name in _FREE for step in _when(name, [(_RETURN, 0, 0, _ALLOW)], _FREE)),
        *_when("open", _allow_unless_set(1, changing)),
        *_when("openat", _allow_unless_set(2, changing)),
        *_when("clone", _allow_if_set(0, _CLONE_THREAD)),
        *_when("clone3", [_refuse(errno.ENOSYS)]),  # its flags lie in memory; the C library then takes clone
        *_when("kill", _allow_if(0, (own,))),
        *_when("tgkill", _allow_if(0, (own,))),
        *_when("prlimit64", _allow_if_null(2)),  # asks for limits, sets none
        *_when("socketpair", _allow_if(0, (socket.AF_UNIX,))),
        *_when("sendto", _allow_if_null(4)),  # without an address: only to the other end of a pair
        *_when("ioctl", _allow_if(1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451))),  # asks, and (non-)blocking
        *_when("fcntl", _allow_unless(1, _OWNERS)),
        *_when("prctl", _allow_if(0, (15, 16))),  # a thread's name
        _refuse(),
    ]
    _load(code)


def allow_reading_only(paths: Iterable[str]) -> None:
    """From here on only files under these ``paths`` can be opened, and only to be read.

    Raises:
        Refused: no Landlock in this kernel (5.13 or newer, switched on).
    """
    libc = _libc()
    abi = landlock_version()
    handled = (1 << (13 + (abi >= 2) + (abi >= 3) + (abi >= 5))) - 1  # rights on files that this kernel knows
    rights = struct.pack("<Q", handled)
    if abi >= 4:
        rights += struct.pack("<Q", 0b11)  # bind and connect by TCP
    if abi >= 6:
        rights += struct.pack("<Q", 0b11)  # abstract sockets, signals
    rules = libc.syscall(_CREATE_RULESET, rights, ctypes.c_size_t(len(rights)), 0)
    if rules < 0:
        raise Refused(_reason("Landlock's rules were refused"))
    try:
        for path in paths:
            try:
                place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue
            allowed = _READ_FILE | _READ_FOLDER if os.path.isdir(path) else _READ_FILE
            done = libc.syscall(_ADD_RULE, rules, 1, struct.pack("<Qi", allowed, place), 0)
            os.close(place)
            if done < 0:
                raise Refused(_reason(f"Landlock refused {path}"))
        _no_new_privileges(libc)
        if libc.syscall(_RESTRICT_SELF, rules, 0) < 0:
            raise Refused(_reason("Landlock does not hold this process"))
    finally:
        os.close(rules)


def landlock_version() -> int:
    """Landlock's version (ABI) of this kernel. Raises ``Refused`` where there is none."""
    if not sys.platform.startswith("linux"):
        raise Refused(f"Landlock is of Linux, this is {platform.system()}")
    version: int = _libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        raise Refused(_reason("this kernel has no Landlock, or it is switched off"))
    return version


def die_with_parent() -> None:
    """SIGKILL to this process when the one that forked it ends."""
    if _libc().prctl(_PARENT_DEATH_SIGNAL, 9, 0, 0, 0) < 0:
        raise Refused(_reason("a death signal was refused"))


# ----------------------------------------------------------------------------------------------------------- the filter
def _load(code: Sequence[_Instruction]) -> None:
    """Put ``code`` before every system call, after the check that the call is of this machine's own kind."""
    if not sys.platform.startswith("linux"):
        raise Refused(f"seccomp is of Linux, this is {platform.system()}")
    architecture, column = _machine()
    head: list[_Instruction] = [(_LOAD, 0, 0, 4), (_JUMP_EQUAL, 1, 0, architecture), _refuse(), (_LOAD, 0, 0, 0)]
    if column == 0:  # x32 calls: other numbers, the same architecture
        head += [(_JUMP_ABOVE, 0, 1, 0x40000000), _refuse()]
    body = b"".join(struct.pack("<HBBI", *step) for step in [*head, *code])
    program = ctypes.create_string_buffer(body)
    command = struct.pack("@HP", len(body) // 8, ctypes.addressof(program))
    libc = _libc()
    _no_new_privileges(libc)
    if libc.prctl(_SET_SECCOMP, _FILTER, command, 0, 0) < 0:
        raise Refused(_reason("seccomp was refused"))


def _machine() -> tuple[int, int]:
    found = _MACHINES.get(platform.machine())
    if found is None or sys.maxsize < 2**32:
        raise Refused(f"system calls of {platform.machine()} are not known here")
    return found


def _no_new_privileges(libc: ctypes.CDLL) -> None:
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) < 0:
        raise Refused(_reason("no_new_privs was refused"))


def _when(
    name: str, block: list[_Instruction], table: dict[str, tuple[int, int | None]] = _CHECKED
) -> list[_Instruction]:
    """``block`` for the call of that name; it must end in a verdict. Nothing where this machine has no such call."""
    number = table[name][_machine()[1]]
    return [] if number is None else [(_JUMP_EQUAL, 0, len(block), number), *block]


def _refuse(code: int = errno.EPERM) -> _Instruction:
    return (_RETURN, 0, 0, _ERRNO | code)


def _argument(index: int, high: bool = False) -> _Instruction:
    return (_LOAD, 0, 0, 16 + 8 * index + 4 * high)


def _allow_if(index: int, values: Sequence[int]) -> list[_Instruction]:
    """Allow where the argument's lower 32 bits are one of ``values``."""
    tests = [(_JUMP_EQUAL, len(values) - place, 0, int(value)) for place, value in enumerate(values)]
    return [_argument(index), *tests, _refuse(), (_RETURN, 0, 0, _ALLOW)]


def _allow_unless(index: int, values: Sequence[int]) -> list[_Instruction]:
    tests = [(_JUMP_EQUAL, len(values) - place, 0, int(value)) for place, value in enumerate(values)]
    return [_argument(index), *tests, (_RETURN, 0, 0, _ALLOW), _refuse()]


def _allow_if_set(index: int, bits: int) -> list[_Instruction]:
    return [_argument(index), (_JUMP_SET, 1, 0, bits), _refuse(), (_RETURN, 0, 0, _ALLOW)]


def _allow_unless_set(index: int, bits: int) -> list[_Instruction]:
    return [_argument(index), (_JUMP_SET, 1, 0, bits), (_RETURN, 0, 0, _ALLOW), _refuse()]


def _allow_if_null(index: int) -> list[_Instruction]:
    halves = [_argument(index), (_JUMP_EQUAL, 0, 2, 0), _argument(index, high=True), (_JUMP_EQUAL, 1, 0, 0)]
    return [*halves, _refuse(), (_RETURN, 0, 0, _ALLOW)]


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _reason(what: str) -> str:
    return f"{what} ({os.strerror(ctypes.get_errno())})"
