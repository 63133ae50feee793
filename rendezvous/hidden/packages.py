"""Finds the packages that a .pyz needs, and installs them where they are missing.

pip installs them into a new folder of the user's cache, which is then renamed once. So an install
that is interrupted leaves nothing that is found later, and of two at a time the first one counts. A
virtual environment would need a second Python process, which Windows does not join to the shell,
and four times the space.

It runs before gevent patches, so it must not import `ssl`.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import types
from contextlib import suppress
from importlib.machinery import EXTENSION_SUFFIXES, PathFinder
from pathlib import Path

from rendezvous.wire import programs
from rendezvous.wire.programs import Mistake, PassingMistake

INSTALL_SECONDS = 600  # 6 MB over a slow line
LEFT_OVER_SECONDS = 2 * INSTALL_SECONDS  # then nobody installs into that folder any more
NEW = 'new-'  # begins the name of a folder that is being filled
# No C compiler is started where there is no wheel. Python compiles only what it imports, later.
# Without a network it fails after a second, not after 19.
HOW = '--only-binary=:all:', '--no-compile', '--no-input', '--disable-pip-version-check'
SOON = '--retries=1', '--timeout=5'
# What a pip.conf may say, and what --target contradicts.
VARIABLES = {'PIP_USER': '0', 'PIP_REQUIRE_VIRTUALENV': '0'}
APT = 'apt install python3-gevent python3-pyotp'  # Debian 12's and later ones will do
OTHER_CACHE = 'set XDG_CACHE_HOME to a folder of your own'


def find(pins: list[str]) -> None:
    """Makes the packages importable; `pins` has lines like `gevent==26.9.0`. Raises Mistake."""
    if all(map(PathFinder.find_spec, programs.PACKAGES)):
        return
    folder = _cache() / _name(pins)
    if not _is_whole(folder):
        _install(pins, folder)
    sys.path.insert(1, str(folder))
    # A folder without __init__.py: one of the system's would be taken for it (Debian 12's certbot).
    sys.modules['zope'] = zope = types.ModuleType('zope')
    zope.__path__ = [str(folder / 'zope')]


def _name(pins: list[str]) -> str:
    """A folder's name: for this Python, for this kind of machine, for these versions."""
    digest = hashlib.sha256('\n'.join(pins).encode()).hexdigest()
    return f'{EXTENSION_SUFFIXES[0].split(".")[1]}-{platform.machine()}-{digest[:12]}'


def _is_whole(folder: Path) -> bool:
    return all((folder / package).is_dir() for package in programs.PACKAGES)


def _cache() -> Path:
    """Our folder in the cache of the user, which nobody else can write. Raises Mistake."""
    folder = _user_cache() / 'rendezvous'
    if not folder.is_absolute():
        raise Mistake(f'there is no home folder for a cache: {OTHER_CACHE}')
    try:
        folder.mkdir(0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise Mistake(f'cannot make {folder}: {error.strerror}; {OTHER_CACHE}') from None
    # Windows has no such owner, and its folder is private.
    if hasattr(os, 'geteuid') and (found.st_uid != os.geteuid() or found.st_mode & 0o022):
        raise Mistake(f'another user can write in {folder}: {OTHER_CACHE}')
    return folder


def _user_cache() -> Path:
    if given := os.environ.get('XDG_CACHE_HOME'):
        return Path(given)
    if sys.platform == 'win32':
        return Path(os.environ.get('LOCALAPPDATA', ''))
    return Path(os.path.expanduser('~/Library/Caches' if sys.platform == 'darwin' else '~/.cache'))


def _install(pins: list[str], folder: Path) -> None:
    """Raises Mistake."""
    programs.say(f'installing {", ".join(pins)} in {folder}')
    try:
        _remove_left_overs(folder.parent)
        with tempfile.TemporaryDirectory(
            dir=folder.parent, prefix=NEW, ignore_cleanup_errors=True
        ) as new:
            target = Path(new, 'packages')
            _run_pip(Path(new), f'--target={target}', *pins)
            if folder.exists() and not _is_whole(folder):
                folder.rename(Path(new, 'not whole'))
            try:
                target.rename(folder)
            except OSError:
                if not _is_whole(folder):  # else another start was faster
                    raise
    except OSError as error:
        raise Mistake(f'cannot write in {folder.parent}: {error.strerror}; {OTHER_CACHE}') from None


def _remove_left_overs(cache: Path) -> None:
    """Removes what an install left that was killed."""
    for folder in cache.glob(f'{NEW}*'):
        with suppress(FileNotFoundError):  # another start has just ended
            if time.time() - folder.stat().st_mtime > LEFT_OVER_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _run_pip(new: Path, *arguments: str) -> None:
    """Raises Mistake, OSError."""
    ran = _run(*_pip(new), 'install', *HOW, *SOON, *arguments)
    if not ran.returncode:
        return
    if broken := re.findall('connection broken by .*: (.*?)[\'")]*: ', ran.stderr):
        needs = 'the first start needs the Internet, and behind a proxy the variable https_proxy'
        raise PassingMistake(f'pip has no connection: {broken[-1]}; {needs}')
    *_, why = ['it says nothing', *re.findall('^ERROR: (.*)', ran.stderr, re.M)]
    raise Mistake(f'pip cannot install what this needs: {why}; {APT} may help')


def _pip(new: Path) -> list[str]:
    """The pip of this Python, or else one of a virtual environment in `new`. Raises Mistake."""
    if PathFinder.find_spec('pip'):
        return [sys.executable, '-P', '-m', 'pip']
    venv = new / 'venv'
    if _run(sys.executable, '-P', '-m', 'venv', str(venv)).returncode:
        packages = ' and '.join(programs.PACKAGES)
        raise Mistake(f'this Python has neither {packages} nor pip: {APT}')
    return [str(venv / ('Scripts' if os.name == 'nt' else 'bin') / 'python'), '-P', '-m', 'pip']


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    """Raises PassingMistake. With -P no file of the current folder is taken for a module."""
    try:
        return subprocess.run(
            command,
            env=os.environ | VARIABLES,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors='replace',
            timeout=INSTALL_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise PassingMistake(f'pip takes more than {INSTALL_SECONDS} s: start again') from None
