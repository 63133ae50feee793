"""Writes a file as a whole or not at all: nobody ever reads half of one."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def write(path: Path, octets: bytes, mode: int) -> None:
    """Writes or replaces a file. At no moment does it have more rights than `mode`.

    Raises OSError, as `writing` does.
    """
    with writing(path, mode) as file:
        file.write(octets)


@contextmanager
def writing(path: Path, mode: int) -> Iterator[BinaryIO]:
    """The same, part by part; where an error leaves the `with`, the file stays as it was."""
    if not path.name or (path.exists() and not (path.is_file() or path.is_dir())):
        raise OSError(errno.EINVAL, 'it is no regular file')  # root would replace /dev/null
    # A name of our own: another process may be writing the same file.
    new = path.with_name(f'{path.name}.{os.getpid()}.new')
    new.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), 'wb') as file:
            yield file
            os.fchmod(file.fileno(), mode)
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)  # it may hold a part of a secret
        raise
