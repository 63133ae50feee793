"""What parent and workers do at their start: the log, and a look whether the server can start."""

import logging
import os
import select
import signal
import stat
import sys
from collections.abc import Callable

from rendezvous.server import listening, tls
from rendezvous.store import options as local
from rendezvous.store.options import Options
from rendezvous.wire import logs
from rendezvous.wire.programs import HERE

LOG = HERE / 'server.log'
READY = signal.SIGRTMIN  # from a worker to the parent: it serves
ORDERS = 'RENDEZVOUS_ORDERS'  # from the parent to a worker, in the environment

Wrap = Callable[[logging.Handler], logging.Handler]


def _as_it_is(handler: logging.Handler) -> logging.Handler:
    return handler


def check(is_first: bool = False) -> Options:
    """The options, where the server can start with them; max_connections is that of each worker.

    With `is_first` no worker of this server runs. Raises Mistake.
    """
    options = local.load()
    tls.check(options)
    if options.node_host:
        for number in range(1, listening.workers(options) + 1):
            listening.node_listener(options, number, is_first).close()
    logs.file(LOG).close()
    return options | {'max_connections': listening.connections(options)}


def log_to_file(wrap: Wrap = _as_it_is) -> None:
    """Each line goes to server.log. `wrap` is given the handler. Raises Mistake."""
    logs.to(wrap(logs.file(LOG)))


def log_to_stderr(wrap: Wrap = _as_it_is) -> None:
    """Each line goes to standard error, too, if that is a terminal or a pipe, as systemd's is.

    Where it is a file, that would be a second log, which nobody rotates, or the first one.
    """
    mode = os.fstat(sys.stderr.fileno()).st_mode
    if os.isatty(sys.stderr.fileno()) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        handler = wrap(_Screen())
        handler.setFormatter(logging.getLogger().handlers[0].formatter)
        logging.getLogger().addHandler(handler)


class _Screen(logging.StreamHandler):
    """Leaves lines out while a terminal is stopped or a reader hangs: they are in server.log."""

    def emit(self, record: logging.LogRecord) -> None:
        poll = select.poll()
        poll.register(self.stream, select.POLLOUT)
        if poll.poll(0):
            super().emit(record)
