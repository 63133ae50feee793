"""A storm: random faults against a steady load of small and large requests, each checked.

    .venv/bin/python bench/chaos/storm.py [EVENTS [SEED]]

1,000 events take about three minutes; half an hour is the bound. Exit status 1 where an octet was
wrong, where a request failed whose own connection nothing had hit, or where anything is left over.

Hidden servers reach the server through relays, so it is known which connections a fault hits;
probe.py tells which of them served which request. A fault counts for a request that failed if it
hit the connection that the request was joined to last (a dead one that it was tried on before that
is no excuse), if a worker was killed that had one of the request's two connections, or if the
parent was killed between the request's connection and the next good answer of its hidden server.
"""

from gevent import monkey

monkey.patch_all()

import os
import random
import signal
import socket
import sys
import time
from collections import Counter
from contextlib import suppress

import common
import gevent
from checked import WRONG
from common import Mobile, Origin, Outcome, Request, ask, until
from faults import Link, Relay, linger_not
from gevent.lock import RLock
from gevent.pool import Pool
from processes import connections, stop

CLIENTS, REGISTRATIONS, AT_A_TIME = 4, 4, 3
BOUND_SECONDS = 1800
BACK_SECONDS = 10  # for the hidden servers, after the server is; there are other faults, too
SLACK_SECONDS = 0.75  # between what a relay does and what a busy or paused server sees
GARBAGE = b'', b'GET / HT', b'\x16\x03\x01\x02\x00\x01', b'SSH-2.0-x\r\n', bytes(range(256)) * 9


class Hidden:
    """A hidden server, the relay that it comes through, and what it hides."""

    def __init__(self, on: common.Stage, name: str):
        self.on, (self.uuid,) = on, on.add(name)['uuid']
        self.relay, self.origin = Relay((on.host, on.port)), Origin()
        self.start()

    def start(self) -> None:
        self.program = self.on.hide(self.uuid, self.origin, self.relay.port)

    def end(self, number: int) -> None:
        for link in self.relay.links:
            link.hits.append(time.monotonic())
        self.program.end(number)
        self.start()


class Faults:
    """What happens. Each method is one event, and picks whom it hits with `dice`."""

    LIKELY = {  # noqa: RUF012
        'server_is_killed': 2,
        'worker_is_killed': 5,
        'new_version': 3,
        'server_reloads': 5,
        'parent_pauses': 2,
        'worker_pauses': 5,
        'redis_is_killed': 5,
        'hidden_server_is_killed': 5,
        'hidden_server_ends': 3,
        'hidden_server_pauses': 6,
        'connection_is_cut': 30,
        'connection_stalls': 12,
        'network_stalls': 4,
        'mobile_client_gives_up': 12,
        'garbage_comes': 6,
        'origin_resets': 6,
    }

    def __init__(self, on: common.Stage):
        self.on, self.busy = on, RLock()  # a process is being ended and started
        on.serve()
        self.hidden = [Hidden(on, name) for name in ('kitchen', 'cellar')]
        self.kills: list[tuple[float, dict[str, float]]] = []  # when; when each was back
        self.backs: list[float] = []  # the longest of each, since the new one listened
        self.killed_workers: dict[int, float] = {}  # when
        self.ports: set[int] = set()  # of mobile clients whose worker was killed
        self.reset_at_origin: set[str] = set()
        self.asking: list[Mobile] = []

    def server_is_killed(self, dice) -> None:
        with self.busy:
            killed, back = time.monotonic(), {}
            self.kills.append((killed, back))
            os.kill(self.on.parent, signal.SIGKILL)
            self.on.serve()
            serving = time.monotonic()
            for hidden in self.hidden:
                until(lambda one=hidden.uuid: self._answers(one), 'it is back', BOUND_SECONDS)
                back[hidden.uuid] = time.monotonic()
            self.backs.append(time.monotonic() - serving)

    def worker_is_killed(self, dice) -> None:
        with self.busy:
            worker = self._a_worker(dice)
            stop(worker)  # while it does nothing, its connections stay what they are
            ports = {port for _, port in connections(worker)}
            now = time.monotonic()
            self.killed_workers[worker] = now
            os.kill(worker, signal.SIGKILL)
        self.ports |= ports
        for link in [link for hidden in self.hidden for link in hidden.relay.links]:
            if link.far_port in ports:
                link.hits.append(now)

    def _answers(self, uuid: str) -> bool:
        return ask(self.on, uuid, seconds=1).saw == 'good'

    def new_version(self, dice) -> None:
        """New workers take over; the old ones let their pipes finish and end."""
        with self.busy:
            assert self.on.renew()

    def server_reloads(self, dice) -> None:
        with self.busy:
            os.kill(self.on.parent, signal.SIGHUP)

    def parent_pauses(self, dice) -> None:
        self._pause(self.on.parent, dice)

    def worker_pauses(self, dice) -> None:
        self._pause(self._a_worker(dice), dice)

    def _a_worker(self, dice) -> int:
        if workers := self.on.workers():
            return dice.choice(workers)
        raise ProcessLookupError

    def _pause(self, pid: int, dice) -> None:
        os.kill(pid, signal.SIGSTOP)
        gevent.sleep(dice.uniform(0, 0.5))
        os.kill(pid, signal.SIGCONT)

    def redis_is_killed(self, dice) -> None:
        for pid in self.on.stores():
            os.kill(pid, signal.SIGKILL)

    def hidden_server_is_killed(self, dice) -> None:
        with self.busy:
            dice.choice(self.hidden).end(signal.SIGKILL)

    def hidden_server_ends(self, dice) -> None:
        with self.busy:
            dice.choice(self.hidden).end(signal.SIGTERM)

    def hidden_server_pauses(self, dice) -> None:
        self._pause(dice.choice(self.hidden).program.pid, dice)

    def connection_is_cut(self, dice) -> None:
        if links := dice.choice(self.hidden).relay.links:
            dice.choice(links).cut(reset=dice.random() < 0.6)

    def connection_stalls(self, dice) -> None:
        if links := dice.choice(self.hidden).relay.links:
            self._stall([dice.choice(links)], dice)

    def network_stalls(self, dice) -> None:
        relay = dice.choice(self.hidden).relay
        relay.flows.clear()
        self._stall(list(relay.links), dice)
        relay.flows.set()

    def _stall(self, links: list[Link], dice) -> None:
        """They acknowledge and forward nothing for a while; then they go on, or are cut."""
        for link in links:
            link.flows.clear()
        gevent.sleep(dice.uniform(0, 2))
        goes_on = dice.random() < 0.5
        for link in links:
            if goes_on:
                link.flows.set()
            else:
                link.cut()

    def mobile_client_gives_up(self, dice) -> None:
        if self.asking:
            dice.choice(self.asking).give_up(reset=dice.random() < 0.5)

    def garbage_comes(self, dice) -> None:
        with socket.create_connection((self.on.host, self.on.port)) as sock:
            sock.sendall(dice.choice(GARBAGE))
            gevent.sleep(0.1)

    def origin_resets(self, dice) -> None:
        origin = dice.choice(self.hidden).origin
        if origin.open:
            name, sock = dice.choice(list(origin.open.items()))
            self.reset_at_origin.add(name)
            linger_not(sock)
            sock.shutdown(socket.SHUT_RDWR)


class Storm(Faults):
    """The load, and what came of it."""

    def __init__(self, on: common.Stage, seed: int):
        super().__init__(on)
        self._seed, self._dice, self._over = seed, random.Random(seed), False
        self._before = on.at_rest(REGISTRATIONS * len(self.hidden))
        self._before_hidden = [on.inside(each.program.pid) for each in self.hidden]
        self._outcomes: list[tuple[str, Outcome]] = []

    def blow(self, count: int) -> None:
        """So many faults, a few at a time."""
        load, blowing = [gevent.spawn(self._load) for _ in range(CLIENTS)], Pool(AT_A_TIME)
        names = self._dice.choices(list(self.LIKELY), self.LIKELY.values(), k=count)
        try:
            for number, name in enumerate(names):
                blowing.spawn(self._happen, name, random.Random(f'{self._seed} {number}'))
                gevent.sleep(0.1)
            blowing.join(raise_error=True)
            self._over = True
            gevent.joinall(load, raise_error=True)  # a request that hangs counts, too
        finally:
            gevent.killall([*blowing, *load])  # else they start what is being ended
        print(f'all: {dict(Counter(names))}')

    def _happen(self, name: str, dice: random.Random) -> None:
        with suppress(OSError):  # whom it was to hit has ended
            getattr(self, name)(dice)

    def _load(self) -> None:
        while not self._over:
            hidden = self._dice.choice(self.hidden)
            mobile = Mobile(self.on, hidden.uuid, seconds=30)
            self.asking.append(mobile)
            saw = 'good'
            for _ in range(self._dice.choice((1, 1, 1, 3))):
                if saw == 'good':
                    outcome = mobile.ask(self._request())
                    saw = 'given up' if mobile.gave_up else outcome.saw
                    self._outcomes.append((hidden.uuid, outcome._replace(saw=saw)))
            self.asking.remove(mobile)
            mobile.close()
            gevent.sleep(self._dice.uniform(0, 0.05 if saw == 'good' else 0.2))

    def _request(self) -> Request:
        most = 3_000_000 if self._dice.random() < 0.2 else 3000
        up, down = (int(self._dice.uniform(0, most)) for _ in range(2))
        return Request(f'r{next(common.numbers)}', up, down)

    def report(self) -> bool:
        """Prints what came of it; whether all is well."""
        joined, saw, why, harmed = self.on.joined(), Counter(), Counter(), []
        for uuid, outcome in self._outcomes:
            saw[outcome.saw] += 1
            if outcome.saw not in ('good', 'given up', *WRONG):
                reason = self._why(uuid, outcome, joined)
                why[reason] += 1
                harmed += [] if reason else [outcome]
        wrong = sum(saw[each] for each in WRONG) + sum(
            len(hidden.origin.wrong) for hidden in self.hidden
        )
        left, tracebacks = self._left(), self.on.log().count('Traceback')
        print(f'{len(self._outcomes)} requests: {dict(saw)}')
        print(f'failed, by what hit their own connection: {dict(why)}')
        print(f'failed, and nothing hit their own connection: {len(harmed)}')
        for outcome in harmed[:20]:
            self.on.explain(outcome)
        print(f'wrong octets: {wrong}; left over: {left or "nothing"}; tracebacks: {tracebacks}')
        print(f'seconds from a new server to good answers of all: {sorted(self.backs)[-3:]}')
        late = any(seconds > BACK_SECONDS for seconds in self.backs)
        return not (harmed or wrong or left or tracebacks or late)

    def _why(self, uuid: str, outcome: Outcome, joined: list) -> str:
        """What hit the connections of this very request; '' where nothing did."""
        for killed, back in self.kills:
            if outcome.since <= back[uuid] and killed <= outcome.ended:
                return 'server killed'
        if outcome.request.name in self.reset_at_origin:
            return 'reset by the origin'
        if outcome.port in self.ports:
            return 'worker killed'
        for at, pid, link in self._served(outcome, joined)[-1:]:
            if at - SLACK_SECONDS < self.killed_workers.get(pid, 0) < outcome.ended:
                return 'worker killed'
            if link and any(at - SLACK_SECONDS < hit < outcome.ended for hit in link.hits):
                return 'connection to the hidden server'
        return ''

    def _served(self, outcome: Outcome, joined: list) -> list[tuple[float, int, Link | None]]:
        """When and by which worker it was joined to which connections: the last one served it."""
        links, served = [link for each in self.hidden for link in each.relay.history], []
        for at, pid, mobile_port, hidden_port in joined:
            if mobile_port == outcome.port and outcome.since <= at <= outcome.ended:
                same = [link for link in links if link.far_port == hidden_port and link.born < at]
                served.append((at, pid, max(same, key=lambda link: link.born, default=None)))
        return served

    def _left(self) -> str:
        left = [self.on.left(self._before)]
        for hidden, before in zip(self.hidden, self._before_hidden, strict=True):
            left.append(self.on.left(before, hidden.program.pid))
            if len(hidden.relay.links) != REGISTRATIONS or hidden.origin.open:
                left.append(f'{len(hidden.relay.links)} links, {len(hidden.origin.open)} requests')
        return '; '.join(filter(None, left))


def main() -> int:
    count = int(sys.argv[1]) if sys.argv[1:] else 1000
    seed = int(sys.argv[2]) if sys.argv[2:] else random.randrange(10**6)
    print(f'{count} events, seed {seed}', flush=True)
    with common.stage() as on, gevent.Timeout(BOUND_SECONDS, TimeoutError('it took too long')):
        storm, began = Storm(on, seed), time.monotonic()
        storm.blow(count)
        print(f'{time.monotonic() - began:.0f} s')
        return 0 if storm.report() else 1


if __name__ == '__main__':
    sys.exit(main())
