"""`server.pid`: which parent runs in this folder, and how its last try of a new version ended."""

import fcntl
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from rendezvous.wire.programs import Mistake

PATH = 'server.pid'  # in the working directory
LOOK_SECONDS = 0.1
START_SECONDS = 60  # for a parent that has begun this very moment, on a machine that is busy
OUTCOMES = {
    'good': 'it runs this version now',
    'failed': 'it continues with the old version; see server.log',
    'drained': 'it cannot, since it is drained: start again when it has ended',
    'moved': 'it cannot, since this folder was moved: end that process, then start again',
}


class PidFile:
    """Locked by the parent that runs, as long as it lives."""

    def __init__(self, descriptor: int | None = None):
        """`descriptor`: of the version before. Raises Mistake."""
        try:
            flags = os.O_RDWR | os.O_CREAT
            self.descriptor = os.open(PATH, flags, 0o600) if descriptor is None else descriptor
            os.set_inheritable(self.descriptor, False)  # no child may hold the lock
        except OSError as error:
            raise Mistake(f'cannot write {PATH}: {error.strerror}') from None
        self.tries = 0 if descriptor is None else int(self._words()[1].partition('-')[2])

    def lock(self) -> bool:
        """False where another parent runs here."""
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self.clear()
        return True

    def clear(self) -> None:
        """This parent starts, or it has ended."""
        os.ftruncate(self.descriptor, 0)

    def write(self, outcome: str) -> None:
        """This parent serves, or it has tried a new version: a key of OUTCOMES."""
        self.tries += 1  # no word of its own: some write `kill $(cat server.pid)`
        os.pwrite(self.descriptor, f'{os.getpid()} {outcome}-{self.tries}    \n'.encode(), 0)

    def have_it_renewed(self) -> int | None:
        """Tells the parent that runs to take the new version; the exit status: 0 if it did.

        None: it has ended meanwhile, and this process has the lock.
        """
        if not self._wait_while(lambda words: not words, START_SECONDS):
            return None
        words = self._words()
        if not words:
            raise Mistake('another server.py has been starting here for a minute: see server.log')
        pid, before = words
        print(f'{sys.argv[0]}: process {pid} serves here: it is to take this version', flush=True)
        with suppress(ProcessLookupError):  # it ends
            os.kill(int(pid), signal.SIGUSR2)
        if not self._wait_while(lambda words: words[1:] in ([before], [])):
            return None
        outcome = self._words()[1].partition('-')[0]
        print(f'{sys.argv[0]}: {OUTCOMES[outcome]}')
        return 0 if outcome == 'good' else 1

    def _wait_while(
        self, condition: Callable[[list[str]], bool], seconds: float = math.inf
    ) -> bool:
        """False where the other parent has ended: the lock is ours."""
        until = time.monotonic() + seconds
        while condition(self._words()) and time.monotonic() < until:
            if self.lock():
                return False
            time.sleep(LOOK_SECONDS)
        return True

    def _words(self) -> list[str]:
        """The parent's process; how the last try of a version ended, and which that was."""
        return os.pread(self.descriptor, 100, 0).decode().split()


def has_terminal() -> bool:
    """Whether this process has a terminal that is still there."""
    try:
        os.close(os.open('/dev/tty', os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
