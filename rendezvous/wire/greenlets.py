"""Greenlets that run for as long as the program does."""

import logging
from collections.abc import Callable

import gevent

log = logging.getLogger(__name__)


def keep_running(run: Callable[[], object], seconds: float) -> None:
    """Runs it again and again. Waits so many seconds after an exception, which is a bug of ours.

    What `run` does without an exception has to take its time: there is no pause after it.
    """
    while True:
        try:
            run()
        except Exception:
            log.exception('this is a bug in the program, which continues')
            gevent.sleep(seconds)
