"""The parent: makes the listening socket, starts the store and the workers, and again what dies.

It has no gevent and no threads, and serves nobody. All its signals are blocked, and it waits for
one at a time: from an administrator, of a child that has ended, from a worker that serves now.

For a new version it tries that in a child first and then becomes it (exec): process, listening
socket and children stay. The new version starts workers of its own. When all of these serve, it has
the old ones hand over; where one of them ends before that, the old ones go on.

To be drained means to end when the last connection has, while other nodes take the new ones.
"""

import argparse
import json
import logging
import math
import os
import signal
import socket
import sys
import time
from dataclasses import asdict

from rendezvous.server import listening, starting, tls
from rendezvous.server.children import (
    SIGNALS,
    STORE,
    Child,
    Generation,
    said,
    spawn_renewal,
    spawn_trial,
    spawn_worker,
)
from rendezvous.server.pid_file import PidFile, has_terminal
from rendezvous.server.starting import LOG, READY
from rendezvous.store import embedded
from rendezvous.store.options import Options
from rendezvous.wire import logs
from rendezvous.wire.programs import EX_CONFIG, HERE, VERSION, Mistake, PassingMistake

log = logging.getLogger('parent')

STATE = 'RENDEZVOUS_STATE'  # from the version before, in the environment
START_SECONDS = 60  # for new workers, on a machine that is busy
STOP_SECONDS = 40  # for workers: longer than they give their pipes
OLD_SECONDS = 120  # for those of the version before: longer than they give pipes and registrations
# A child that lived so long is started again at once. The store ends at each write to a full disk:
# meanwhile it is still good for reading.
WORKER_LIVED_SECONDS, STORE_LIVED_SECONDS = 60, 0.2
LONGEST_PAUSE_SECONDS = 60
# Workers that are drained have closed the listening socket by then, and so does their parent.
CLOSE_SECONDS = listening.LISTEN_SECONDS + listening.HANDSHAKES_SECONDS
ROTATE_SECONDS = 60  # between two looks at the size of the log, and at the date
DAY_SECONDS = 86_400  # of the clock on the wall: a machine may sleep for weeks, and be set right


class Parent:
    """The processes that it has, and those that it is to start."""

    def __init__(self, file: PidFile, state: dict):
        """`state`: what the version before has left, {} at the first start."""
        self._file = file
        self._since = state.get('since') or time.time()  # the versions before it count, too
        self._now: Generation | None = None  # whose workers are started again when they die
        self._before: Generation | None = None  # whose workers go on until those of now serve
        if state:
            listener = socket.socket(fileno=state['listener'])
            listener.set_inheritable(False)  # no child may hold the port, when this process ends
            self._now = Generation(state['number'], Options(**state['options']), listener)
        children = state.get('children', {}).items()
        self._children = {int(pid): Child(**child) for pid, child in children}
        self._due: dict[int, float] = {}  # by number, time.monotonic(): what is to be started
        self._pauses: dict[int, float] = {}
        # time.monotonic(), while it starts a generation, while an old one ends, while all ends
        self._start_by = self._old_by = self._stop_by = 0.0
        self._close_at = 0.0  # time.monotonic(): the listening socket, where it is drained
        self._drains = False  # it is, or will be as soon as it serves
        self._trial = self._trial_output = 0  # the process that tries a new version
        self._again = False  # another version came meanwhile
        self._renewal = self._renewal_output = 0  # the process that renews the certificate
        self._day = time.time() // DAY_SECONDS  # when that was last: bin/run.sh has just done it
        self._reloaded_at, self._rotate_at = 0.0, time.monotonic()
        self._status, self._terminal = 0, has_terminal()

    def begin(self, options: Options) -> None:
        """Starts a generation of workers, and the store where it is ours. Raises Mistake.

        `options`: those of `starting.check`.
        """
        before = self._now
        listener = listening.listener(options, before.listener if before else None)
        self._now = Generation(before.number + 1 if before else 1, options, listener)
        self._before = before  # only now: where the port is not to be had, nothing has changed
        if not options.knows_addresses:
            sentence = 'key_file is None: wrong codes are not counted by address'
            log.warning('%s, unless the proxy in front says it: proxy_protocol', sentence)
        self._start_by = time.monotonic() + START_SECONDS
        self._start_missing(self._now)

    def run(self) -> int:
        """Until all has ended: the exit status."""
        while self._children or self._due:
            self._start_what_is_due()
            info = signal.sigtimedwait(SIGNALS, self._seconds_to_wait())
            self._reap()
            if info:
                self._heed(info.si_signo, info.si_pid)
            self._look_at_the_clock()
            if self._drains and not (self._close_at or self._start_by or self._stop_by):
                self._begin_drain()
        if not self._status:
            log.info('stopped')
        return self._status

    # Children

    def _numbered(self, number: int) -> list[int]:
        return [pid for pid, child in self._children.items() if child.number == number]

    def _workers(self, *generations: Generation | None) -> list[int]:
        """The processes of the workers of these generations; without any, of all."""
        numbers = [each.number for each in generations if each]
        return [
            pid
            for pid, child in self._children.items()
            if child.number != STORE and (child.generation in numbers or not generations)
        ]

    def _start_missing(self, now: Generation) -> None:
        """The workers of a generation that do not run, and the store, are due."""
        running = self._workers(now) + self._numbered(STORE)
        first = STORE if now.has_store else 1
        missing = set(range(first, now.count + 1)) - {self._children[pid].number for pid in running}
        self._due = dict.fromkeys(sorted(missing), 0.0)  # the store first

    def _start_what_is_due(self) -> None:
        for number, due in list(self._due.items()):
            if due <= time.monotonic() and self._now:
                del self._due[number]
                child = Child(number, self._now.number, time.monotonic())
                try:
                    pid = self._spawn(self._now, number)
                except (OSError, Mistake) as error:
                    if self._start_by and not self._children:  # nothing has been started yet
                        kind = Mistake if isinstance(error, Mistake) else PassingMistake
                        raise kind(f'cannot start {child}: {error}') from None
                    self._start_again(child, f'cannot be started: {error}')
                else:
                    self._children[pid] = child

    def _spawn(self, now: Generation, number: int) -> int:
        """Starts a worker, or the store; its process. Raises OSError or Mistake."""
        return spawn_worker(now, number, self._since) if number else embedded.spawn()

    def _kill(self, pids: list[int], number: int) -> None:
        for pid in pids:
            os.kill(pid, number)  # nobody has waited for it yet: the number is still its own

    def _reap(self) -> None:
        while self._children or self._trial or self._renewal:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            code = os.waitstatus_to_exitcode(status)
            if pid == self._trial:
                self._judge(code)
            elif pid == self._renewal:
                self._renewed(code)
            elif child := self._children.pop(pid, None):
                self._lost(child, code)

    def _lost(self, child: Child, code: int) -> None:
        """A child has ended: it is started again where it is needed, and the log says why."""
        if self._stop_by:
            if not self._workers():
                self._kill(self._numbered(STORE), signal.SIGTERM)
            return
        now, how = self._now, f'was ended by signal {-code}' if code < 0 else f'ended with {code}'
        if child.number and self._close_at:
            return self._drained(child, how if code else '')
        if not now or not (child.generation == now.number if child.number else now.has_store):
            return  # others have its work now
        if child.number and self._start_by and self._before:
            return self.give_up(f'worker {child.number} {how}')
        if child.number and self._start_by and code == EX_CONFIG:
            self._status = code
            return self._stop()
        self._start_again(child, how)

    def _start_again(self, child: Child, how: str) -> None:
        long = WORKER_LIVED_SECONDS if child.number else STORE_LIVED_SECONDS
        lived = time.monotonic() - child.began > long
        pause = 0.0 if lived else self._pauses.get(child.number, 0.0)
        self._pauses[child.number] = min(2 * pause + 0.1, LONGEST_PAUSE_SECONDS)
        self._due[child.number] = time.monotonic() + pause
        log.error('%s %s; it is started again in %.1f s', child, how, pause)

    # Signals

    def _heed(self, number: int, sender: int) -> None:
        if number == READY and sender in self._children:
            self._is_ready(sender, self._children[sender])
        elif number == signal.SIGINT and self._stop_by:
            self._stop_by = time.monotonic()  # Ctrl-C again: somebody does not want to wait
        elif number in (signal.SIGTERM, signal.SIGINT):
            self._stop()
        elif number == signal.SIGHUP:
            self._hang_up()
        elif number == signal.SIGUSR1:
            self._drain()
        elif number == signal.SIGUSR2:
            self._try_new_version()

    def _is_ready(self, pid: int, child: Child) -> None:
        child.serves, now = True, self._now
        if child.began < self._reloaded_at:  # it may have read the files that were there before
            os.kill(pid, signal.SIGHUP)
        workers = self._workers(now)
        all_there = now and self._start_by and len(workers) == now.count
        if now and all_there and all(self._children[each].serves for each in workers):
            self._all_serve(now)

    def _all_serve(self, now: Generation) -> None:
        """Those of the generation before have done their work."""
        if self._before and self._before.listener is not now.listener:
            self._before.listener.close()
        self._kill(self._workers(self._before), signal.SIGUSR2)
        self._start_by, self._before = 0.0, None
        self._old_by = time.monotonic() + OLD_SECONDS
        if not now.has_store:
            self._kill(self._numbered(STORE), signal.SIGTERM)
        port, host = now.listener.getsockname()[1], now.options.listen_host
        at = f', at {host}' if host else ''
        log.info('listening on port %d of %s%s', port, now.options.rendezvous_host, at)
        self._say('good')

    def _stop(self) -> None:
        if not self._stop_by:
            if self._workers() and not self._start_by:
                log.info('stopping: pipes may take 30 seconds to finish')
            self._due.clear()
            self._end_trial()
            self._start_by, self._stop_by = 0.0, time.monotonic() + STOP_SECONDS
            for each in filter(None, (self._now, self._before)):
                each.listener.close()  # clients are refused, instead of waiting for nobody
            self._kill(self._workers() or self._numbered(STORE), signal.SIGTERM)

    # Drain

    def _drain(self) -> None:
        if not (self._drains or self._stop_by):
            log.info('draining: new connections are for other nodes; it ends with its last pipe')
            self._drains = True
            self._end_trial()

    def _begin_drain(self) -> None:
        """Workers that are still to be started, again, could not know what the others do."""
        self._due = {number: due for number, due in self._due.items() if number == STORE}
        self._close_at = time.monotonic() + CLOSE_SECONDS
        for pid in self._workers(self._now):
            serves = self._children[pid].serves
            os.kill(pid, signal.SIGUSR1 if serves else signal.SIGTERM)
        self._end_where_drained()

    def _drained(self, child: Child, how: str) -> None:
        """A worker has ended. `how`: where that was no clean end."""
        if how:
            log.error('%s %s', child, how)
        self._end_where_drained()

    def _end_where_drained(self) -> None:
        if not self._workers():
            log.info('drained: no connection is left')
            self._stop()

    def _hang_up(self) -> None:
        """SIGHUP is for key and certificate, unless it says that the terminal is closed."""
        self._look_at_the_terminal()
        self._read_again()

    def _read_again(self) -> None:
        if self._now and self._now.options.key_file and not self._stop_by:
            try:
                tls.check(self._now.options)
            except Mistake as mistake:
                log.error('the old key and certificate stay: %s', mistake)
            else:
                self._reloaded_at = time.monotonic()
                serving = [pid for pid in self._workers() if self._children[pid].serves]
                self._kill(serving, signal.SIGHUP)

    def _look_at_the_terminal(self) -> None:
        """When it is closed, the server ends, unless it was started under nohup."""
        if self._terminal and not has_terminal():
            self._terminal = False
            if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
                self._stop()

    # The next certificate

    def _look_at_the_date(self) -> None:
        """Each day the certificate is renewed if that is due, and what others renew is read."""
        today, now = time.time() // DAY_SECONDS, self._now
        if today == self._day or self._stop_by or not (now and now.options.key_file):
            return
        if self._renewal:  # since yesterday: it hangs
            return os.killpg(self._renewal, signal.SIGKILL)
        self._day = today
        try:
            self._renewal_output = os.memfd_create('output')
            self._renewal = spawn_renewal(self._renewal_output)
        except OSError as error:
            log.error('cannot look whether the certificate is to be renewed: %s', error)

    def _renewed(self, code: int) -> None:
        text, self._renewal = said(self._renewal_output), 0
        if code:
            log.error('%s', text or f'make_cert.py --renew ended with {code}')
        elif text:
            log.info('%s', text)
        self._read_again()

    # A new version

    def _try_new_version(self) -> None:
        """Has a child do the set-up and look whether the new version can start."""
        self._again = bool(self._trial or self._start_by)
        if self._again or self._stop_by:
            return self._end_trial()
        if self._drains:
            log.error(
                'no new version is taken: this node is drained; start it again when it has ended'
            )
            return self._say('drained')
        if not (HERE.exists() and HERE.samefile('.')):
            return self._say('moved')  # no log can be written where it was
        log.info('trying the new version')
        try:
            self._trial_output = os.memfd_create('output')
            self._trial = spawn_trial(self._trial_output)
        except OSError as error:
            self.give_up(str(error))

    def _end_trial(self) -> None:
        """What it tries is no longer the newest version, or is not needed."""
        if self._trial:
            os.killpg(self._trial, signal.SIGKILL)

    def _judge(self, code: int) -> None:
        """The trial has ended: with status 0 this process becomes the new version."""
        why = said(self._trial_output) or f'its trial ended with {code}'
        self._trial = 0
        if self._stop_by or self._again or not self._now:
            return
        if self._drains:
            return self._say('drained')
        if code:
            return self.give_up(why)
        listener, children = self._now.listener, self._children.items()
        state = {'number': self._now.number, 'options': asdict(self._now.options)}
        state |= {'listener': listener.fileno(), 'file': self._file.descriptor}
        state |= {'since': self._since, 'children': {pid: asdict(child) for pid, child in children}}
        try:
            for descriptor in (listener.fileno(), self._file.descriptor):
                os.set_inheritable(descriptor, True)
            os.execve(
                sys.executable,
                [sys.executable, 'server.py'],
                os.environ | {STATE: json.dumps(state)},
            )
        except OSError as error:
            for descriptor in (listener.fileno(), self._file.descriptor):
                os.set_inheritable(descriptor, False)
            self.give_up(f'{sys.executable}: {error.strerror}')

    def give_up(self, why: str) -> None:
        """The new version does not start: the workers of the old one go on."""
        log.error('the new version cannot start: %s; the old one continues', why)
        if self._before:
            self._kill(self._workers(self._now), signal.SIGKILL)
            self._now, self._before, self._start_by = self._before, None, 0.0
        if self._now:
            self._start_missing(self._now)
        self._say('failed')

    def _say(self, outcome: str) -> None:
        """... to the programs that have brought a version; if another came later, its outcome."""
        if not (self._again and self._file.tries):
            self._file.write(outcome)

    # Time

    def _seconds_to_wait(self) -> float:
        times = [*self._due.values(), self._start_by, self._old_by, self._stop_by, self._rotate_at]
        times.append(self._close_at)
        return max(0.0, min(filter(None, times)) - time.monotonic())

    def _look_at_the_clock(self) -> None:
        now = time.monotonic()
        if now >= self._rotate_at:
            self._look_at_the_terminal()  # a shell that ends need not send a SIGHUP
            logs.rotate(LOG)
            self._look_at_the_date()
            self._rotate_at = now + ROTATE_SECONDS
        if self._stop_by and now >= self._stop_by:
            self._kill(self._workers() or self._numbered(STORE), signal.SIGKILL)
            self._stop_by = now + STOP_SECONDS
        if self._close_at and now >= self._close_at and self._now:
            self._now.listener.close()
            self._close_at = math.inf
        if self._old_by and now >= self._old_by:
            old = set(self._workers()) - set(self._workers(self._now, self._before))
            self._kill(list(old), signal.SIGKILL)
            self._old_by = 0.0
        if self._start_by and now >= self._start_by:
            self._start_by = now + START_SECONDS
            why = f'its workers do not serve after {START_SECONDS} s'
            self.give_up(why) if self._before else log.error('the server is not ready: %s', why)
        if self._again and not (self._trial or self._start_by):
            self._try_new_version()


def main() -> int:
    """Until a signal ends it: the exit status. Raises Mistake."""
    arguments = argparse.ArgumentParser(description='The rendezvous server.')
    arguments.add_argument('--check', action='store_true', help='only say whether it can start')
    arguments.add_argument('--version', action='version', version=VERSION)
    arguments.parse_args()  # --check has ended up elsewhere: any other one is a mistake
    os.umask(0o077)
    os.chdir(HERE)
    state = json.loads(os.environ.pop(STATE, '{}'))
    file = PidFile(state.pop('file', None))
    if not state and not file.lock():
        starting.check()  # a mistake is better said here than in the log
        status = file.have_it_renewed()
        if status is not None:
            return status
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    starting.log_to_file()
    parent = Parent(file, state)
    try:
        parent.begin(starting.check(is_first=not state))
    except Mistake as mistake:
        if not state:
            log.critical('%s', mistake)
            raise
        parent.give_up(str(mistake))
    starting.log_to_stderr()
    status = parent.run()
    file.clear()
    return status
