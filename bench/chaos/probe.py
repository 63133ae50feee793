"""Put behind the pipe.py of a copy of the project: what only the process itself knows.

A line in `joined.log` for each pipe: when, which process, and the ports of the mobile client and of
the hidden server, so that a request can be followed from connection to connection. A port is 0
where another worker has that connection. After the signal SAY, `inside.PID` holds how many
greenlets, pipes and registrations there are.
"""

import gc
import json
import os
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import gevent

SAY = signal.SIGRTMIN + 5  # of no meaning to any of our programs


def install(pipe) -> None:
    def end(self, sock, *arguments) -> None:
        init_end(self, sock, *arguments)
        self.port = port(sock)  # now: it may be gone when the pipe begins

    def joined(self, mobile, hidden, *arguments, **more) -> None:
        init_pipe(self, mobile, hidden, *arguments, **more)
        # A mobile client of another worker has no port here, but the caller knows it.
        peer = sys._getframe(1).f_locals.get('peer', ('', mobile.port))
        with suppress(OSError), open('joined.log', 'a') as file:  # the disk may be full
            line = [time.monotonic(), os.getpid(), peer[1], hidden.port]
            file.write(json.dumps(line) + '\n')

    init_end, init_pipe = pipe.End.__init__, pipe.Pipe.__init__
    pipe.End.__init__, pipe.Pipe.__init__ = end, joined
    gevent.signal_handler(SAY, say, pipe.Pipe)
    with suppress(OSError):
        Path(f'probed.{os.getpid()}').touch()


def port(sock) -> int:
    """The other side's; 0 where it has left already."""
    with suppress(OSError):
        name = getattr(sock, 'raw', sock).getpeername()
        return name[1] if isinstance(name, tuple) else 0  # a Unix socket has a path
    return 0


def say(kind: type) -> None:
    gc.collect()
    things = gc.get_objects()
    inside = {
        'greenlets': sum(isinstance(one, gevent.Greenlet) and not one.dead for one in things),
        'pipes': sum(isinstance(one, kind) for one in things),
    }
    for one in things:
        if type(one).__name__ == 'Registry':
            inside['registrations'] = len(one.waiting())
            inside['mobile clients'] = len(one.wanted())
        elif type(one).__name__ == 'Meeting':  # the other worker has a greenlet for each
            kept = [sock for socks in one._kept.values() for sock in socks]
            inside['greenlets'] -= sum(not has_ended(sock) for sock in kept)
        elif type(one).__name__ == 'Door':  # the same of links
            inside['greenlets'] -= one.count()
    with open(f'inside.{os.getpid()}.new', 'w') as file:
        json.dump(inside, file)
    os.rename(file.name, f'inside.{os.getpid()}')


def has_ended(sock) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
