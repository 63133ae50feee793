"""A disk that is full and a clock that is wrong: what a mobile client sees, and for how long.

    .venv/bin/python bench/chaos/machine.py

About four minutes. The full disk needs root, for a small one to mount; the clock needs libfaketime
(apt install faketime).
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import gevent
import redis
from common import (
    Origin,
    Stage,
    ask,
    listens,
    print_head,
    print_row,
    stage,
    until,
    until_good,
    words,
)

DISK_BYTES = 16 * 1024 * 1024
CLOCK_IS_WRONG_SECONDS = 5
FAKETIME = next(Path('/usr/lib').glob('*/faketime/libfaketime.so.1'), None)


@contextmanager
def small_disk():
    with tempfile.TemporaryDirectory() as folder:
        mount = ['mount', '-t', 'tmpfs', '-o', f'size={DISK_BYTES}', 'chaos', folder]
        subprocess.run(mount, check=True)
        try:
            yield folder
        finally:
            subprocess.run(['umount', '-l', folder], check=True)


def fill(file: Path) -> None:
    with suppress(OSError), file.open('wb', 0) as filler:
        while True:
            filler.write(bytes(4096))


def requests(on: Stage, uuid: str, count: int = 30) -> tuple[str, list[float]]:
    """What requests see, one after the other, and how long they take."""
    outcomes = [ask(on, uuid, 1000, 100_000, seconds=15) for _ in range(count)]
    return words(Counter(each.saw for each in outcomes)), [e.ended - e.began for e in outcomes]


def print_requests(fault: str, on: Stage, uuid: str, server) -> None:
    saw, seconds = requests(on, uuid)
    alive = 'server runs' if server.process.poll() is None else f'SERVER ENDED: {server.said()}'
    print_row(fault, [f'30 requests: {saw}'], seconds, alive)


def full_disk() -> None:
    with small_disk() as folder, stage(folder) as on:
        (uuid,) = on.add('kitchen')['uuid']
        server, origin, filler = on.serve()[0], Origin(), on.path / 'filler'
        hiding = on.hide(uuid, origin)
        before = on.at_rest(server.pid, 4)
        fill(filler)
        print_requests('disk full', on, uuid, server)
        hiding.end(signal.SIGKILL)
        hiding = on.start('hidden.py', hiding.process.args[2], origin.address)
        print_requests('disk full, hidden.py new', on, uuid, server)
        with suppress(redis.ConnectionError):  # it ends rather than forget what it was told
            on.redis('set', 'large', 'x' * 10_000)
        print_requests('disk full, and the store has ended', on, uuid, server)
        ran = on.run('users_app.py', 'add', 'cellar')
        print(f'    users_app.py add: status {ran.status}, {ran.stderr.strip()[-150:]}')
        server.end(signal.SIGKILL)
        server, began = on.start('server.py'), time.monotonic()  # its log says nothing
        until(lambda: listens(on.port), f'it listens {server.said()}', 30)
        seen, seconds = until_good(on, uuid, 20)
        print_row('disk full, server new', [seen], [seconds], 'see below')
        filler.unlink()
        seen, seconds = until_good(on, uuid)
        print_row('disk free again', [seen], [seconds], on.until_as_before(server.pid, before))
        print(
            f'    {time.monotonic() - began:.0f} s; users_app.py: {on.run("users_app.py", "add")}'
        )


@contextmanager
def clock(on: Stage, name: str):
    """Programs that are started meanwhile have a clock that `file` sets, in seconds from now."""
    file = on.path / f'clock.{name}'
    file.write_text('+0')
    faked = {
        'LD_PRELOAD': str(FAKETIME),
        'FAKETIME_TIMESTAMP_FILE': str(file),
        'FAKETIME_NO_CACHE': '1',
        'FAKETIME_DONT_FAKE_MONOTONIC': '1',  # setting a clock does not, either
    }
    os.environ.update(faked)
    try:
        yield file
    finally:
        for each in faked:
            del os.environ[each]


def wrong_clock(whose: str, offset: str) -> None:
    """It is wrong for a while, in which the registrations that wait are used up."""
    with stage(rendezvous_wait=2) as on:
        (uuid,) = on.add('kitchen')['uuid']
        origin = Origin()
        if whose == 'server':
            with clock(on, whose) as file:
                server = on.serve()[0]
            hiding = on.hide(uuid, origin)
        else:
            server = on.serve()[0]
            with clock(on, whose) as file:
                hiding = on.hide(uuid, origin)
        before = on.at_rest(server.pid, 4)
        file.write_text(offset)
        began, seen = time.monotonic(), Counter()
        while time.monotonic() - began < CLOCK_IS_WRONG_SECONDS:
            seen[ask(on, uuid).saw] += 1
            gevent.sleep(0.2)
        file.write_text('+0')
        _, seconds = until_good(on, uuid, 400)
        said = [line for line in hiding.said().splitlines() if 'clock' in line]
        traces = (hiding.said() + server.said() + on.log()).count('Traceback')
        left = on.until_as_before(server.pid, before, 60)
        alive = hiding.process.poll() is None and server.process.poll() is None
        state = f'{left}; both run: {alive}, tracebacks: {traces}, said {len(said)} x: {said[:1]}'
        print_row(f'clock of {whose} {offset}', [words(seen)], [seconds], state)


def main() -> None:
    print_head()
    if os.geteuid():
        print('not tried: full disk (mounting a small one needs root)')
    else:
        full_disk()
    if not FAKETIME:
        sys.exit('not tried: wrong clock (apt install faketime)')
    for whose in ('hidden.py', 'server'):
        for offset in ('+3600', '-3600'):
            wrong_clock(whose, offset)


if __name__ == '__main__':
    main()
