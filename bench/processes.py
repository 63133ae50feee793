"""What /proc says of the processes of a server: which they are, their CPU, memory, connections."""

import os
import re
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TICKS = os.sysconf('SC_CLK_TCK')
LISTENS = '0A'  # a state, in /proc/net/tcp


def command_line(pid: int) -> str:
    with suppress(OSError):
        return Path(f'/proc/{pid}/cmdline').read_bytes().replace(b'\0', b' ').decode()
    return ''


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]


def workers(parent: int) -> list[int]:
    return [pid for pid in children(parent) if '--worker' in command_line(pid)]


def family(pids: Iterable[int]) -> list[int]:
    """These processes, those that they have started, and so on."""
    found, new = [], list(pids)
    while new:
        found += new
        new = [child for pid in new for child in _children_if_there(pid)]
    return found


def _children_if_there(pid: int) -> list[int]:
    with suppress(OSError):  # it has ended
        tasks = Path(f'/proc/{pid}/task').iterdir()  # a thread may have started it
        return [int(word) for task in tasks for word in (task / 'children').read_text().split()]
    return []


def family_cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of these processes and all their children, ended ones included."""
    ticks = 0
    for pid in family(pids):
        with suppress(OSError):
            ticks += sum(map(int, _fields(pid)[11:15]))
    return ticks / TICKS


def _fields(pid: int) -> list[str]:
    """Those behind the name, in its `stat` (man 5 proc)."""
    return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()


def memory_bytes(pids: Iterable[int]) -> int:
    """Their resident memory. What they share counts for each."""
    found = [re.search(r'VmRSS:\s+(\d+)', Path(f'/proc/{pid}/status').read_text()) for pid in pids]
    return sum(int(each[1]) * 1024 for each in found if each)


def connections(pid: int) -> list[tuple[int, int]]:
    """Of TCP: the port of this process and that of the other side, of each.

    Its network may be another one than ours.
    """
    own, tables = set(), []
    with suppress(OSError):  # it has ended
        for fd in Path(f'/proc/{pid}/fd').iterdir():
            with suppress(OSError):
                own.add(os.readlink(fd).removeprefix('socket:[').removesuffix(']'))
        tables = [Path(f'/proc/{pid}/net/{name}').read_text() for name in ('tcp', 'tcp6')]
    rows = [row.split() for table in tables for row in table.splitlines()[1:]]
    rows = [row for row in rows if row[9] in own and row[3] != LISTENS]
    ends = [[end.partition(':')[2] for end in row[1:3]] for row in rows]
    return [(int(near, 16), int(far, 16)) for near, far in ends]


def confine(pids: Iterable[int], cores: Iterable[int]) -> None:
    """They, with all their threads, use these cores alone."""
    cores = list(cores)
    for pid in pids:
        with suppress(OSError):
            for task in Path(f'/proc/{pid}/task').iterdir():
                os.sched_setaffinity(int(task.name), cores)


def kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def stop(pid: int) -> None:
    """SIGSTOP; when this returns, it runs no more."""
    while _fields(pid)[0] != 'T':
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.0002)


@contextmanager
def stopped(pids: Iterable[int]) -> Iterator[None]:
    """These processes do nothing meanwhile."""
    pids = list(pids)
    for pid in pids:
        stop(pid)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
