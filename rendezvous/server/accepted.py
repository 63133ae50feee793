"""A connection that a worker has accepted, as the others see it: who owns it, how to end it.

A greenlet owns it, but while a registration waits none does: a blocked greenlet takes 8 KB. Then a
watcher of the hub starts one, as soon as there is something to read or it is to be ended.
"""

from collections.abc import Callable
from typing import Any

import gevent

from rendezvous.wire.addresses import Peer
from rendezvous.wire.sockets import READ, Ended, Socket


class Connection:
    """One that the current greenlet owns."""

    __slots__ = (
        *('sock', 'peer', 'may_finish', '_greenlet', '_watcher', '_go_on', '_why'),
        *('has_place', 'kind', 'address', 'visit'),
    )

    def __init__(self, sock: Socket, peer: Peer):
        self.sock, self.peer = sock, peer  # and who is at the other end
        self.may_finish = False  # where the server stops: it is in a pipe, or is closed just now
        self._greenlet: gevent.Greenlet | None = gevent.getcurrent()
        self._watcher: Any = None
        self._go_on: Callable[[], object] | None = None
        self._why: type[Ended] | None = None
        # How limits.py counts it:
        self.has_place, self.kind, self.address, self.visit = False, '', 0, 0

    def wait(self, go_on: Callable[[], object]) -> None:
        """Nobody owns it from now on. `go_on` will start a greenlet, which calls `own` first."""
        self._greenlet, self._go_on = None, go_on
        self._watcher = gevent.get_hub().loop.io(self.sock.fileno(), READ)
        self._watcher.start(self._wake)
        if self._why:  # the greenlet that owned it is over before Ended is raised there
            self._wake()

    def own(self) -> None:
        """The current greenlet owns it. Raises Ended where it was ended before that ran."""
        self._greenlet = gevent.getcurrent()
        self.sock.is_read_off = False  # there is something: that has woken it
        if self._why:
            raise self._why

    def is_mine(self) -> bool:
        """Whether the current greenlet owns it."""
        return self._greenlet is gevent.getcurrent()

    def interrupt(self, why: type[Ended] = Ended) -> None:
        """Raises Ended in the greenlet that owns it, soon."""
        self._why = self._why or why
        if self._greenlet is not None:
            self._greenlet.kill(why, block=False)
        else:  # a greenlet that is killed before it runs would close nothing
            self._wake()

    def _wake(self) -> None:
        if self._watcher and self._go_on:
            self._watcher.stop()
            self._watcher.close()
            go_on, self._watcher, self._go_on = self._go_on, None, None
            go_on()
