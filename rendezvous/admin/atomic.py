"""Writes a file as a whole or not at all: nobody ever reads half of one."""

import os
from pathlib import Path


def write(path: Path, octets: bytes, mode: int) -> None:
    """Writes or replaces a file. At no moment does it have more rights than `mode`."""
    # A name of our own: another process may be writing the same file.
    new = path.with_name(f'{path.name}.{os.getpid()}.new')
    new.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), 'wb') as file:
            file.write(octets)
            os.fchmod(file.fileno(), mode)
        os.replace(new, path)
    except OSError:
        new.unlink(missing_ok=True)  # it may hold a part of a secret
        raise
