"""What each program does first: it goes on in `.venv`, where its packages are.

So `python3 users_app.py` does what `.venv/bin/python users_app.py` does. Standard library only, and
nothing of it that gevent patches.
"""

import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

VENV = Path(__file__).resolve().parents[2] / '.venv'
PACKAGES = 'gevent', 'pyotp'  # of hidden.py; where these are, those of the others are


def go_on() -> None:
    """Starts the program anew with `.venv/bin/python`, unless this Python has the packages."""
    if all(map(PathFinder.find_spec, PACKAGES)):
        return
    python = str(VENV / 'bin' / 'python')
    if os.access(python, os.X_OK) and sys.executable != python:
        os.execv(python, [python, *sys.orig_argv[1:]])
    program = Path(sys.argv[0]).name
    needed = ' '.join(PACKAGES) if program == 'hidden.py' else '-r requirements.txt'
    how = f'python3 -m venv .venv && .venv/bin/pip install {needed}'
    print(f'{program}: its packages are not here: {how}', file=sys.stderr)
    sys.exit(78)  # EX_CONFIG, which Windows has no name for
