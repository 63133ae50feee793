"""What each program does first: it goes on in `.venv`, where its packages are.

So `python3 users_app.py` does what `.venv/bin/python users_app.py` does. Standard library only, and
nothing of it that gevent patches.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

VENV = Path(__file__).resolve().parent / '.venv'


def go_on() -> None:
    """Starts the program anew with `.venv/bin/python`, unless this Python has the packages."""
    if find_spec('gevent'):
        return
    python = VENV / 'bin' / 'python'
    if python.exists() and Path(sys.prefix).resolve() != VENV.resolve():
        os.execv(python, [str(python), *sys.orig_argv[1:]])
    program = Path(sys.argv[0]).name
    needed = 'gevent pyotp' if program == 'hidden.py' else '-r requirements.txt'
    how = f'python3 -m venv .venv && .venv/bin/pip install {needed}'
    print(f'{program}: its packages are not here: {how}', file=sys.stderr)
    sys.exit(os.EX_CONFIG)
