"""How many connections the workers have, in all and from each address: in memory that they share.

Each worker writes its own row of numbers and reads all of them; nobody waits for anybody. An
address is counted by a hash of it, in one of 65,535 places: two that share one are rare, and matter
only where both have hundreds of connections.
"""

import hashlib
import mmap
import os

PLACES = 2**16  # of a row: the first one holds the connections in all
MOST = 2**16 - 1  # that one place can hold
AHEAD = 3  # so many connections more than the least loaded worker are too many


def create(workers: int) -> int:
    """A descriptor of memory for so many rows."""
    descriptor = os.memfd_create('shares')
    os.ftruncate(descriptor, workers * PLACES * 2)
    return descriptor


class Shares:
    """The row of worker `number`, from 1 on, among those of all workers."""

    def __init__(self, descriptor: int, workers: int, number: int, seed: bytes):
        memory = mmap.mmap(descriptor, workers * PLACES * 2)
        rows = memoryview(memory).cast('H')
        self.rows = [rows[start : start + PLACES] for start in range(0, len(rows), PLACES)]
        self._own, self._seed = self.rows[number - 1], seed

    def clear(self) -> None:
        """A worker begins: what one of the same number that was killed has left is nothing."""
        self._own[:] = memoryview(bytes(PLACES * 2)).cast('H')

    def place(self, key: str) -> int:
        """Where the connections with this key are counted: 1 or more."""
        # With a seed: nobody can choose addresses that share the place of somebody else.
        digest = hashlib.blake2b(key.encode(), digest_size=2, key=self._seed).digest()
        return max(1, int.from_bytes(digest, 'big'))

    def count(self, place: int) -> int:
        """How many connections of all workers are counted there."""
        return sum(row[place] for row in self.rows)

    def add(self, place: int, change: int) -> None:
        """So many connections of this worker more, or less, are counted there."""
        self._own[place] = min(max(self._own[place] + change, 0), MOST)

    def add_connection(self, change: int) -> None:
        self.add(0, change)

    def is_ahead(self) -> bool:
        """Whether this worker has some connections more than the least loaded one."""
        return self._own[0] > min(row[0] for row in self.rows) + AHEAD
