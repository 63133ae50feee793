"""A thread writes the log: neither a slow disk nor a stopped terminal blocks a greenlet."""

import logging
from collections import deque

import gevent.threadpool  # now: its first use may come when no descriptor is left to read it

BACKLOG_LINES = 10_000  # kept while nothing can be written, some 2 MB
GATHER_SECONDS = 0.1  # before they are written: a thread for each line costs more than the line
CLOSE_SECONDS = 1  # for the lines that are being written at the end


class Background(logging.Handler):
    """Has a thread of gevent's pool give `handler` the lines, many at once if they come fast."""

    def __init__(self, handler: logging.Handler):
        super().__init__()
        self._handler = handler
        self._lines: deque[str] = deque()
        self._lost_lines = 0
        self._writing: gevent.Greenlet | None = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Without a lock: greenlets of one thread come here, and `emit` never yields."""
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        if len(self._lines) >= BACKLOG_LINES:
            self._lost_lines += 1
            return
        self._lines.append(self.format(record))
        if self._writing is None:
            self._writing = gevent.spawn(self._write_all)

    def _write_all(self) -> None:
        while self._lines:
            gevent.sleep(GATHER_SECONDS)
            lines = self._all_lines()
            try:
                gevent.get_hub().threadpool.apply(self._handler.emit, (lines,))
            except RuntimeError:  # the program ends: Python 3.12 starts no thread any more
                self._handler.emit(lines)
        self._writing = None

    def _all_lines(self) -> logging.LogRecord:
        """Takes all lines that are kept, as one record."""
        lines = [*self._lines]
        self._lines.clear()
        if self._lost_lines:
            lines.append(f'{self._lost_lines} more lines could not be written in time')
            self._lost_lines = 0
        return logging.makeLogRecord({'msg': '\n'.join(lines)})

    def close(self) -> None:
        """Writes the lines that are left."""
        if self._writing:
            self._writing.join(CLOSE_SECONDS)
        if self._lines:
            self._handler.emit(self._all_lines())
        self._handler.close()
        super().close()
