"""A disk that is full and a clock that is wrong: what a mobile client sees, and for how long.

    .venv/bin/python bench/chaos/machine.py

About two minutes. The full disk needs root, for a small one to mount; the clock needs libfaketime
(apt install faketime).
"""

from gevent import monkey

monkey.patch_all()

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import gevent
import redis
from common import Origin, Stage, ask, print_row, stage, until, until_good, words
from programs import listens

CLOCK_IS_WRONG_SECONDS = 5
FAKETIME = next(Path('/usr/lib').glob('*/faketime/libfaketime.so.1'), None)


@contextmanager
def small_disk():
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=16m', 'none', folder], check=True)
        try:
            yield folder
        finally:
            subprocess.run(['umount', '--lazy', folder], check=True)


def fill(file: Path) -> None:
    with suppress(OSError), file.open('wb', 0) as filler:
        while True:
            filler.write(bytes(4096))


def print_requests(fault: str, on: Stage, uuid: str) -> None:
    """What 30 requests see, one after the other."""
    outcomes = [ask(on, uuid, 1000, 100_000, seconds=15) for _ in range(30)]
    seconds = [outcome.ended - outcome.began for outcome in outcomes]
    saw = words(Counter(outcome.saw for outcome in outcomes))
    print_row(fault, saw, seconds, f'{len(on.workers())} workers run')


def full_disk() -> None:
    """... under the log and the embedded store, which ends rather than forget what it is told."""
    with small_disk() as folder, stage(folder) as on:
        (uuid,) = on.add('kitchen')['uuid']
        on.serve()
        origin, filler = Origin(), on.path / 'filler'
        hiding = on.hide(uuid, origin)
        before = on.at_rest(4)
        fill(filler)
        print_requests('disk full', on, uuid)
        hiding.end(signal.SIGKILL)
        hiding = on.start('hidden.py', *hiding.process.args[2:])
        print_requests('disk full, hidden.py is new', on, uuid)
        with suppress(redis.ConnectionError):
            on.redis('set', 'large', 'x' * 10_000)
        print_requests('disk full, the store ended on a write', on, uuid)
        said = on.run('users_app.py', 'add', 'cellar').stderr.strip()
        print(f'    users_app.py add: ...{said[-60:]}')
        os.kill(on.parent, signal.SIGKILL)
        until(lambda: not on.workers(), 'it is dead')
        on.start('server.py')
        until(lambda: listens(on.port), 'it listens', 30)
        saw, seconds = until_good(on, uuid)
        print_row('disk full, server.py is new', saw, [seconds], '')
        filler.unlink()
        saw, seconds = until_good(on, uuid)
        print_row('disk free again', saw, [seconds], f'left over: {on.left(before)}')
        added = on.run('users_app.py', 'add', 'cellar').status
        print(f'    users_app.py add: exit status {added}')


@contextmanager
def own_clock(file: Path):
    """Programs that are started meanwhile have a clock that `file` sets, in seconds from now."""
    file.write_text('+0')
    faked = {
        'LD_PRELOAD': str(FAKETIME),
        'FAKETIME_TIMESTAMP_FILE': str(file),
        'FAKETIME_NO_CACHE': '1',
        'FAKETIME_DONT_FAKE_MONOTONIC': '1',  # who sets a clock does not, either
    }
    os.environ.update(faked)
    yield
    for name in faked:
        del os.environ[name]


def wrong_clock(whose: str, offset: str) -> None:
    """It is wrong for a while, in which the registrations that wait are used up."""
    with stage(rendezvous_wait=2) as on:
        (uuid,), clock = on.add('kitchen')['uuid'], on.path / 'clock'
        with own_clock(clock) if whose == 'server.py' else nullcontext():
            server, _ = on.serve()
        with own_clock(clock) if whose == 'hidden.py' else nullcontext():
            hiding = on.hide(uuid, Origin())
        before, seen = on.at_rest(4), Counter()
        clock.write_text(offset)
        began = time.monotonic()
        while time.monotonic() - began < CLOCK_IS_WRONG_SECONDS:
            seen[ask(on, uuid).saw] += 1
            gevent.sleep(0.2)
        clock.write_text('+0')
        _, seconds = until_good(on, uuid)
        said = hiding.said() + server.said() + on.log()
        more = f'said: {"clock of this machine" in said or "s clock is" in said}, tracebacks: '
        more += f'{said.count("Traceback")}; left over: {on.left(before, seconds=60)}'
    print_row(f'clock of {whose} was {offset} s off', words(seen), [seconds], more)


def main() -> None:
    print_row('', 'what mobile clients saw', [], '')
    if os.geteuid():
        print('no full disk: to mount a small one needs root')
    else:
        full_disk()
    if not FAKETIME:
        sys.exit('no wrong clock: apt install faketime')
    for whose in ('hidden.py', 'server.py'):
        for offset in ('+3600', '-3600'):
            wrong_clock(whose, offset)


if __name__ == '__main__':
    main()
