"""Files of entries that `users_app.py export` writes and `import` takes back.

The file is text, a JSON object a line. The first line says what it is:

    {"rendezvous": "export", "form": 1, "made": SECONDS SINCE 1970}

Each line that follows is an entry, as store/export.py gives it: its secret, host name, history and
all. The last line tells whether anything was lost or changed on the way: how many entries there
are, and the SHA-256 of all octets before this line:

    {"entries": 12, "sha256": "HEX"}
"""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from rendezvous.admin import atomic
from rendezvous.admin.actions import Unable
from rendezvous.store import export
from rendezvous.store.entry_json import Json

FORM = 1  # of the file; another one may follow
BEGIN = b'{"rendezvous": "export"'
LINE_BYTES = 64 << 20  # a hundred times what an entry of 400 busy days has


def write(path: Path, wholes: Iterable[Json | None]) -> int:
    """Writes the file, for its owner alone, and gives how many entries are in it.

    None: that entry was deleted meanwhile. Raises OSError, and what `wholes` raises: then the file
    stays as it was.
    """
    count, digest = 0, hashlib.sha256()
    with atomic.writing(path, 0o600) as file:

        def put(value: Json) -> None:
            line = f'{json.dumps(value)}\n'.encode()
            digest.update(line)
            file.write(line)

        put({'rendezvous': 'export', 'form': FORM, 'made': time.time()})
        for whole in filter(None, wholes):
            put(whole)
            count += 1
        put({'entries': count, 'sha256': digest.hexdigest()})
    return count


def is_one(path: Path) -> bool:
    """Whether the file begins as one of these does. One that cannot be read is none."""
    try:
        with path.open('rb') as file:
            return file.read(len(BEGIN)) == BEGIN
    except OSError:
        return False


def read(path: Path) -> Iterator[Json]:
    """Its entries, without what cannot be put back. Before the first one is given the whole file
    is checked. Raises Unable.
    """
    try:
        with path.open('rb') as file:
            count = _check(path, file)
            file.seek(0)
            file.readline()
            for _ in range(count):
                yield export.checked(json.loads(file.readline()))
    except OSError as error:
        raise Unable(f'cannot read {path}: {error.strerror}') from None


def _check(path: Path, file: BinaryIO) -> int:
    """How many entries there are. Raises Unable."""
    digest, end = hashlib.sha256(), {}
    for number, line in enumerate(iter(lambda: file.readline(LINE_BYTES), b'')):
        value = _object(line)
        if 'sha256' in value:
            end = value
            break
        if number == 0 and value.get('form') != FORM:
            raise Unable(f'{path} was made by another version of this program, which can read it')
        if number and not _is_entry(value):
            raise Unable(f'{path} is damaged in line {number + 1}: nothing was imported')
        digest.update(line)
    else:
        number = 0
    if end != {'entries': number - 1, 'sha256': digest.hexdigest()} or file.read(1):
        raise Unable(f'{path} is not as it was when it was made: nothing was imported')
    return number - 1


def _object(line: bytes) -> Json:
    """The JSON object; {} where it is something else."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_entry(value: Json) -> bool:
    try:
        export.checked(value)
    except ValueError:
        return False
    return True
