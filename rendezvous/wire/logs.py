"""The log: its format, its file, and the rotation of that file.

Several processes write to one file. If each of them rotated it, lines would be lost: the others go
on writing to a file that has been renamed, and later deleted. So one process calls `rotate`, and
each handler of `file` opens the file again when it was renamed.

Standard library only.
"""

import logging
import logging.handlers
import time
from contextlib import suppress
from pathlib import Path

from rendezvous.wire.programs import Mistake

LOG_BYTES, OLD_FILES = 10 * 1024 * 1024, 5  # rotated, so that the log never fills a disk


def to(*handlers: logging.Handler) -> None:
    """Has all of these handlers get each line, with its time."""
    logging.raiseExceptions = False  # a full disk must not end a program
    logging.logThreads = False  # it would make a thread object for each greenlet that logs
    logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # nor is it looked up which line of the program logs
    for handler in handlers:
        handler.setFormatter(_Format())
    logging.basicConfig(level=logging.INFO, handlers=handlers)


class _Format(logging.Formatter):
    """Time, level, message. The text of a second is made once, not for each line."""

    _second, _text = -1, ''

    def format(self, record: logging.LogRecord) -> str:
        second = int(record.created)
        if second != self._second:
            self._second = second
            self._text = time.strftime(self.default_time_format, time.localtime(second))
        time_and_level = f'{self._text},{int(record.msecs):03} {record.levelname}'
        return f'{time_and_level} {super().format(record)}'


class _File(logging.handlers.WatchedFileHandler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # the file was renamed, and a new one cannot be made now
            self.handleError(record)


def file(path: Path) -> logging.Handler:
    """Appends to a file that another process may rename. Raises Mistake."""
    try:
        return _File(path)
    except OSError as error:
        raise Mistake(
            f'cannot write {path}: {error.strerror}; change its owner or rights'
        ) from None


def rotate(path: Path, log_bytes: int = LOG_BYTES, old_files: int = OLD_FILES) -> None:
    """Renames a log of that size to `path`.1, and the old ones up by one; the oldest is deleted.

    For one process alone. An error of the disk is ignored: the next call tries again.
    """
    with suppress(OSError):
        if path.stat().st_size < log_bytes:
            return
        for number in range(old_files, 0, -1):
            newer = path.with_name(f'{path.name}.{number - 1}') if number > 1 else path
            if newer.exists():
                newer.replace(path.with_name(f'{path.name}.{number}'))
