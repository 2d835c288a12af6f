"""The seccomp filter that every call runs under: a classic BPF program, put together here, loaded by ``worker.py``.

Namespaces already hide files, processes and the network. The filter takes away what namespaces do not cover: system
calls that make new namespaces or mounts, reach into other processes, keep memory that belongs to no process (System V
and POSIX queues, memfd), open sockets of any family (AF_VSOCK, for one, passes through network namespaces), or that are
large and rarely needed parts of the kernel (io_uring, bpf, perf, userfaultfd, keyrings).

A denied call returns an error; it does not kill, so that a program gets an ordinary exception. A call of a foreign
architecture (32-bit entry points, x32) is killed: its numbers mean something else.
"""

from __future__ import annotations

import errno
import platform
import struct

# name → (x86_64, aarch64) number; None: the architecture has no such call.
DENIED: dict[str, tuple[int | None, int | None]] = {
    # namespaces, mounts, other roots
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "statmount": (457, 457),
    "listmount": (458, 458),
    "open_tree_attr": (467, 467),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    # sockets; socketpair is looked at below
    "socket": (41, 198),
    # memory that outlives or belongs to no process
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semctl": (66, 191),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgctl": (71, 187),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    # keyrings
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # large parts of the kernel
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "fanotify_init": (300, 262),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    "ustat": (136, None),
    "sysfs": (139, None),
    "lookup_dcookie": (212, 18),
    "remap_file_pages": (216, 234),
    # the machine itself
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "syslog": (103, 116),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, None),
    "ioperm": (173, None),
    "vhangup": (153, 58),
}
MISSING = {"memfd_create", "memfd_secret", "io_uring_setup", "clone3"}  # programs have a way without: ENOSYS
# Any CLONE_NEW… flag, and CLONE_PARENT, which would give the worker children that it never asked for.
CLONE_FORBIDDEN = 0x7E020000 | 0x00000080 | 0x00008000
AF_UNIX = 1

ARCHITECTURES = {  # machine → (column above, AUDIT_ARCH value, clone, clone3, socketpair)
    "x86_64": (0, 0xC000003E, 56, 435, 53),
    "aarch64": (1, 0xC00000B7, 220, 435, 199),
}
X32_BIT = 0x40000000

LOAD, JUMP_EQ, JUMP_GE, JUMP_SET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, ERROR, KILL = 0x7FFF0000, 0x00050000, 0x80000000
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data (little endian)


def program(machine: str = platform.machine()) -> bytes:
    """The filter for this machine, as an array of struct sock_filter. ValueError where the calls are not known."""
    if machine not in ARCHITECTURES:
        raise ValueError(f"{machine}: the sandbox knows the system calls of {' and '.join(ARCHITECTURES)} only")
    column, audit, clone, clone3, socketpair = ARCHITECTURES[machine]
    code = [
        (LOAD, 0, 0, ARCHITECTURE),
        (JUMP_EQ, 1, 0, audit),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
    ]
    if machine == "x86_64":
        code += [(JUMP_GE, 0, 1, X32_BIT), (RETURN, 0, 0, KILL)]
    for name, numbers in [*DENIED.items(), ("clone3", (clone3, clone3))]:
        number = numbers[column]
        if number is not None:
            error = errno.ENOSYS if name in MISSING else errno.EPERM
            code += [(JUMP_EQ, 0, 1, number), (RETURN, 0, 0, ERROR | error)]
    # Loads the first argument: last, because the number is gone then.
    code += [
        (JUMP_EQ, 0, 4, clone),
        (LOAD, 0, 0, FIRST_ARGUMENT),
        (JUMP_SET, 0, 1, CLONE_FORBIDDEN),
        (RETURN, 0, 0, ERROR | errno.EPERM),
        (RETURN, 0, 0, ALLOW),
        (JUMP_EQ, 0, 3, socketpair),
        (LOAD, 0, 0, FIRST_ARGUMENT),
        (JUMP_EQ, 1, 0, AF_UNIX),
        (RETURN, 0, 0, ERROR | errno.EPERM),
        (RETURN, 0, 0, ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
