"""How each program begins and ends: with the Python of `.venv`; with a sentence for a mistake.

Standard library only, and nothing of it that gevent patches: programs patch after they import this.
"""

import ctypes
import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NoReturn

VERSION = '1.0'  # of all programs, server and hidden server alike

PR_SET_PDEATHSIG = 1  # of linux/prctl.h
EX_CONFIG, EX_TEMPFAIL, EX_IOERR = 78, 75, 74  # of sysexits.h; Windows has no names for them
HERE = Path(__file__).resolve().parents[2]  # the project's folder
PACKAGES = 'gevent', 'pyotp'  # hidden.py needs these; a Python that has them has the others', too


class Mistake(Exception):
    """What an administrator can correct: one sentence that says what to do instead."""

    status = EX_CONFIG  # of the program


class PassingMistake(Mistake):
    """One that time may correct: another start may succeed."""

    status = EX_TEMPFAIL


def use_venv() -> None:
    """Starts the program again with `.venv/bin/python`, unless this Python has the packages.

    So `python3 users_app.py` does the same as `.venv/bin/python users_app.py`.
    """
    if all(map(PathFinder.find_spec, PACKAGES)):
        return
    python = str(HERE / '.venv' / 'bin' / 'python')
    if os.access(python, os.X_OK) and sys.executable != python:
        os.execv(python, [python, *sys.orig_argv[1:]])
    program = Path(sys.argv[0]).name
    needed = ' '.join(PACKAGES) if program == 'hidden.py' else '-r requirements.txt'
    how = f'python3 -m venv .venv && .venv/bin/pip install {needed}'
    say(f'its packages are not installed: {how}')
    sys.exit(EX_CONFIG)


def main(run: Callable[[], int | None]) -> NoReturn:
    """Runs a program to its end. See `ending_by_mistakes`."""
    with ending_by_mistakes():
        sys.exit(run())


@contextmanager
def ending_by_mistakes() -> Iterator[None]:
    """Ends the program at a Mistake: prints it, and the exit status is 78 (EX_CONFIG), or 75.

    If a full disk cannot take what it prints, that is printed, and the status is 74 (EX_IOERR).
    """
    try:
        yield
    except Mistake as mistake:
        say(mistake)
        sys.exit(mistake.status)
    except KeyboardInterrupt:
        sys.exit(130)  # as shells have it
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        say(error.strerror)
        os._exit(EX_IOERR)  # sys.exit would try to print the same once more


def die_with(parent_pid: int, number: int) -> None:
    """Has the kernel send this process a signal when its parent ends, even by kill -9.

    If the parent has ended already, this process ends at once.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit(1)


def say(sentence: object) -> None:
    print(f'{Path(sys.argv[0]).name}: {sentence}', file=sys.stderr)
