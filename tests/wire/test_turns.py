"""No connection stops the others: how long the hub cannot poll the sockets."""

import gc
import subprocess
import sys
import time
from pathlib import Path

import gevent
import pytest
from conftest import code, until

BLAST = Path(__file__).with_name('blast.py')
TURN_SECONDS = 0.02  # of our processor time, whatever else this machine does
STREAMS = [
    'pipelined',
    'head',
    'body',
    'body behind its 401',
    'pipe up',
    'pipe down',
    'key updates',
    'key updates that ask for one',
    'fields',
    'parameters',
    'query',
]


class Turns:
    """Measures each turn of the hub while it is open."""

    def __enter__(self):
        gc.collect()
        gc.disable()  # of what all the tests before have left
        self.count, self.longest, self._began = 0, 0.0, time.thread_time()
        self._watcher = gevent.get_hub().loop.prepare()
        self._watcher.start(self._note)
        return self

    def _note(self) -> None:
        now = time.thread_time()
        self.count, self.longest = self.count + 1, max(self.longest, now - self._began)
        self._began = now

    def __exit__(self, *_) -> None:
        self._watcher.stop()
        self._watcher.close()
        gc.enable()


@pytest.mark.deadline(90)
@pytest.mark.parametrize('stream', STREAMS)
def test_no_stream_keeps_the_hub(server, pair, entries, uuid, stream):
    arguments = str(server.port), pair['crt_file'], stream, uuid, code(entries, uuid)
    with subprocess.Popen([sys.executable, str(BLAST), *arguments]) as blasting, Turns() as turns:
        try:
            until(lambda: blasting.poll() is not None, 'it has sent all', 60)
            until(lambda: not server.connections, 'it is served', 60)
        finally:
            blasting.kill()
    print('LONGEST', stream, turns.longest, turns.count)
    assert blasting.returncode == 0
    assert turns.count > 10
    assert turns.longest < TURN_SECONDS
