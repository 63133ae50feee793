"""How each program begins and ends: in `.venv`, and with a sentence where something is wrong.

Standard library only, and nothing of it that gevent patches.
"""

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NoReturn

PR_SET_PDEATHSIG = 1  # of linux/prctl.h
EX_CONFIG, EX_IOERR = 78, 74  # of sysexits.h; Windows has no names for them
HERE = Path(__file__).resolve().parents[2]  # the project's folder
PACKAGES = 'gevent', 'pyotp'  # of hidden.py; where these are, those of the others are


class Mistake(Exception):
    """What an administrator can mend: one sentence that says what to write or to do instead."""


def use_venv() -> None:
    """Starts the program anew with `.venv/bin/python`, unless this Python has the packages.

    So `python3 users_app.py` does what `.venv/bin/python users_app.py` does.
    """
    if all(map(PathFinder.find_spec, PACKAGES)):
        return
    python = str(HERE / '.venv' / 'bin' / 'python')
    if os.access(python, os.X_OK) and sys.executable != python:
        os.execv(python, [python, *sys.orig_argv[1:]])
    program = Path(sys.argv[0]).name
    needed = ' '.join(PACKAGES) if program == 'hidden.py' else '-r requirements.txt'
    how = f'python3 -m venv .venv && .venv/bin/pip install {needed}'
    _complain(f'its packages are not here: {how}')
    sys.exit(EX_CONFIG)


def main(run: Callable[[], int | None]) -> NoReturn:
    """Runs a program; a Mistake is its last words and exit status 78 (EX_CONFIG).

    So is a full disk under what it prints, with status 74 (EX_IOERR).
    """
    try:
        sys.exit(run())
    except Mistake as mistake:
        _complain(mistake)
        sys.exit(EX_CONFIG)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _complain(error.strerror)
        os._exit(EX_IOERR)  # or what could not be printed would be tried once more


def die_with(parent_pid: int, number: int) -> None:
    """Lets the kernel send this process a signal when its parent ends, even by kill -9.

    A parent that has ended already is no longer the parent: this process ends at once then.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit(1)


def _complain(sentence: object) -> None:
    print(f'{Path(sys.argv[0]).name}: {sentence}', file=sys.stderr)
