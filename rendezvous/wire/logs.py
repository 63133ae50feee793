"""The log: other threads write it, so that neither a slow disk nor a stopped terminal stops us."""

import logging
import logging.handlers
from collections import deque
from pathlib import Path

import gevent

from rendezvous.wire.programs import Mistake

LOG_BYTES, LOG_FILES = 10 * 1024 * 1024, 5  # rotated, so that it never fills a disk
BACKLOG = 10_000  # lines that are remembered while nothing can be written, some 2 MB
GATHER_SECONDS = 0.02  # until they are written: a thread for each line costs more than the line
CLOSE_SECONDS = 1  # for what is being written at the end


def to(*handlers: logging.Handler) -> None:
    """Has all of these get each line, with its time."""
    logging.raiseExceptions = False  # a full disk is no reason to end anything
    logging.logThreads = False  # it would make a thread object for each greenlet that logs
    form = '%(asctime)s %(levelname)s %(message)s'
    logging.basicConfig(level=logging.INFO, format=form, handlers=handlers)


def file(path: Path) -> logging.Handler:
    """A file that is rotated. Raises Mistake."""
    try:
        handler = logging.handlers.RotatingFileHandler(path, 'a', LOG_BYTES, LOG_FILES)
    except OSError as error:
        raise Mistake(
            f'cannot write {path}: {error.strerror}; change its owner or rights'
        ) from None
    return Behind(handler)


def screen() -> logging.Handler:
    """Where errors are printed: a terminal, or what systemd reads."""
    return Behind(logging.StreamHandler())


class Behind(logging.Handler):
    """Has a thread of gevent's pool give a handler its lines, many at once where they come fast."""

    def __init__(self, handler: logging.Handler):
        super().__init__()
        self._handler = handler
        self._lines: deque[str] = deque()
        self._lost = 0
        self._writing: gevent.Greenlet | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if len(self._lines) >= BACKLOG:
            self._lost += 1
            return
        self._lines.append(self.format(record))
        if self._writing is None:
            self._writing = gevent.spawn(self._write_all)

    def _write_all(self) -> None:
        while self._lines:
            gevent.sleep(GATHER_SECONDS)
            gevent.get_hub().threadpool.apply(self._handler.emit, (self._record(),))
        self._writing = None

    def _record(self) -> logging.LogRecord:
        """All lines that there are."""
        lines = [*self._lines]
        self._lines.clear()
        if self._lost:
            lines.append(f'{self._lost} more lines could not be written in time')
            self._lost = 0
        return logging.makeLogRecord({'msg': '\n'.join(lines)})

    def close(self) -> None:
        """Writes what is left."""
        if self._writing:
            self._writing.join(CLOSE_SECONDS)
        if self._lines:
            self._handler.emit(self._record())
        self._handler.close()
        super().close()
