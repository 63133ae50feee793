"""A storm: random faults against a steady load of small and large requests, each checked.

    .venv/bin/python bench/chaos/storm.py [EVENTS [SEED]]

1,000 events take about five minutes; half an hour is the bound. Exit status 1 where an octet was
wrong, where a request failed whose own connection nothing had hit, or where anything is left over.

Each hidden server reaches the server through a relay, so it is known which connections a fault hits;
probe.py tells which of them served which request. A fault counts for a request if the connection
was hit while it served it (a dead registration that it is tried on first may cost it nothing), or if
the server was killed between the request's connection and the hidden server's next registration.
"""

import json
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
from common import Mobile, Origin, Outcome, Request, ask, listens, until
from faults import Link, Relay, linger_not
from gevent.lock import RLock
from gevent.pool import Pool

CLIENTS, REGISTRATIONS = 4, 4
BOUND_SECONDS = 1800
BACK_SECONDS = 10  # for the hidden servers, after the server is; there are other faults, too
SLACK_SECONDS = 0.75  # between what the relay does and what a busy or paused server sees
GARBAGE = (b'', b'GET / HT', b'\x16\x03\x01\x02\x00\x01', b'SSH-2.0-x\r\n', os.urandom(3000))


class Hidden:
    """A hidden server, the relay that it comes through, and what it serves."""

    def __init__(self, on: common.Stage, name: str):
        self.on, (self.uuid,) = on, on.add(name)['uuid']
        self.relay, self.origin = Relay((on.host, on.port)), Origin()
        self.start()

    def start(self) -> None:
        self.program = self.on.hide(self.uuid, self.origin, port=self.relay.port)

    def end(self, number: int) -> None:
        for link in self.relay.links:
            link.hits.append(time.monotonic())
        self.program.end(number)
        self.start()


class Storm:
    """The load, the faults, and which of them may have harmed whom."""

    def __init__(self, on: common.Stage, seed: int):
        self.on, self.random = on, random.Random(seed)
        self.server, _ = on.serve()
        self.hidden = [Hidden(on, name) for name in ('kitchen', 'cellar')]
        self.before = on.at_rest(self.server.pid, REGISTRATIONS * len(self.hidden))
        self.hidden_before = [on.left(each.program.pid) for each in self.hidden]
        self.kills: list[tuple[float, dict[str, float]]] = []  # when; when each was back
        self.reset_at_origin: set[str] = set()
        self.asking: list[Mobile] = []
        self.outcomes: list[tuple[str, Outcome]] = []
        self.left_by_themselves = 0
        self.backs: list[float] = []  # seconds from a new server to answers of all
        self.busy = RLock()  # a process is being killed and started

    # The load

    def load(self) -> None:
        while True:
            hidden = self.random.choice(self.hidden)
            mobile = Mobile(self.on, hidden.uuid, seconds=30)
            mobile.gave_up = False
            self.asking.append(mobile)
            for _ in range(self.random.choice((1, 1, 1, 3))):
                outcome = mobile.ask(self.request())
                if not mobile.gave_up:
                    self.outcomes.append((hidden.uuid, outcome))
                if outcome.saw != 'good':
                    break
            self.asking.remove(mobile)
            mobile.close()
            gevent.sleep(self.random.uniform(0, 0.05))

    def request(self) -> Request:
        large = self.random.random() < 0.2
        most = 3_000_000 if large else 3000
        up, down = (int(self.random.uniform(0, most)) for _ in range(2))
        return Request(f'r{next(common.numbers)}', up, down)

    # The faults: each is one event

    def server_killed(self) -> None:
        killed, back = time.monotonic(), {}
        self.kills.append((killed, back))
        self.server.end(signal.SIGKILL)
        self.server = self.on.start('server.py')
        until(lambda: listens(self.on.port), 'it listens')
        listening = time.monotonic()
        for hidden in self.hidden:
            until(lambda one=hidden.uuid: self.answers(one), 'it is back', BOUND_SECONDS)
            back[hidden.uuid] = time.monotonic()
        self.backs.append(time.monotonic() - listening)

    def answers(self, uuid: str) -> bool:
        gevent.sleep(0.02)
        return ask(self.on, uuid, seconds=1).saw == 'good'

    def server_reloads(self) -> None:
        os.kill(self.server.pid, signal.SIGHUP)

    def server_pauses(self) -> None:
        self.pause(self.server.pid)

    def redis_killed(self) -> None:
        for pid in self.on.stores():
            os.kill(pid, signal.SIGKILL)

    def hidden_killed(self) -> None:
        self.random.choice(self.hidden).end(signal.SIGKILL)

    def hidden_ends(self) -> None:
        self.random.choice(self.hidden).end(signal.SIGTERM)

    def hidden_pauses(self) -> None:
        self.pause(self.random.choice(self.hidden).program.pid)

    def pause(self, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        gevent.sleep(self.random.uniform(0, 0.5))
        os.kill(pid, signal.SIGCONT)

    def connection_reset(self) -> None:
        if links := self.random.choice(self.hidden).relay.links:
            self.random.choice(links).cut()

    def connection_closed(self) -> None:
        if links := self.random.choice(self.hidden).relay.links:
            self.random.choice(links).cut(reset=False)

    def connection_stalls(self) -> None:
        if links := self.random.choice(self.hidden).relay.links:
            self.stall([self.random.choice(links)])

    def network_gone(self) -> None:
        relay = self.random.choice(self.hidden).relay
        relay.flows.clear()
        self.stall(relay.links)
        relay.flows.set()

    def stall(self, links: list[Link]) -> None:
        """They acknowledge and forward nothing for a while; then they go on, or are cut."""
        stalled = list(links)
        for link in stalled:
            link.flows.clear()
        gevent.sleep(self.random.uniform(0, 2))
        on = self.random.random() < 0.5
        for link in stalled:
            if on:
                link.flows.set()
            else:
                link.cut()

    def mobile_gives_up(self) -> None:
        if self.asking:
            mobile = self.random.choice(self.asking)
            mobile.gave_up = True
            self.left_by_themselves += 1
            mobile.close(reset=self.random.random() < 0.5)

    def garbage_comes(self) -> None:
        with socket.create_connection((self.on.host, self.on.port)) as sock:
            sock.sendall(self.random.choice(GARBAGE))
            gevent.sleep(0.1)

    def origin_resets(self) -> None:
        hidden = self.random.choice(self.hidden)
        if hidden.origin.open:
            name = self.random.choice(list(hidden.origin.open))
            self.reset_at_origin.add(name)
            linger_not(hidden.origin.open[name])
            hidden.origin.open[name].shutdown(socket.SHUT_RDWR)

    FAULTS = {  # and how likely each is
        server_killed: 2,
        server_reloads: 5,
        server_pauses: 5,
        redis_killed: 5,
        hidden_killed: 5,
        hidden_ends: 3,
        hidden_pauses: 6,
        connection_reset: 20,
        connection_closed: 12,
        connection_stalls: 12,
        network_gone: 4,
        mobile_gives_up: 12,
        garbage_comes: 6,
        origin_resets: 6,
    }

    # What came of it

    def why(self, uuid: str, outcome: Outcome, joined: list) -> str:
        """What hit the connections of this very request; '' where nothing did."""
        for killed, back in self.kills:
            if outcome.since <= back.get(uuid, killed) and killed <= outcome.ended:
                return 'server killed'
        if outcome.request.name in self.reset_at_origin:
            return 'origin reset'
        for at, link in self.served(outcome, joined)[-1:]:
            if link and any(at - SLACK_SECONDS < hit < outcome.ended for hit in link.hits):
                return 'its connection to the hidden server'
        return ''

    def served(self, outcome: Outcome, joined: list) -> list[tuple[float, Link | None]]:
        """When it was joined to which connections, one after the other: the last one served it."""
        served = []
        for at, mobile_port, hidden_port in joined:
            if mobile_port == outcome.port and outcome.since <= at <= outcome.ended:
                links = [link for hidden in self.hidden for link in hidden.relay.history]
                same = [link for link in links if link.far_port == hidden_port and link.born < at]
                served.append((at, max(same, key=lambda link: link.born) if same else None))
        return served

    def blow(self, count: int) -> Counter:
        """So many faults, up to three at a time."""
        blowing, seen = Pool(3), Counter()
        load = [gevent.spawn(self.load) for _ in range(CLIENTS)]
        for fault in self.random.choices(list(self.FAULTS), self.FAULTS.values(), k=count):
            seen[fault.__name__] += 1
            blowing.spawn(self.one, fault)
            gevent.sleep(self.random.uniform(0, 0.2))
        blowing.join(raise_error=True)
        gevent.sleep(1)
        gevent.killall(load)
        for mobile in self.asking:
            mobile.close()
        return seen

    def one(self, fault) -> None:
        with suppress(OSError):  # whom it is for may have ended
            if fault in (
                Storm.server_killed,
                Storm.server_reloads,
                Storm.hidden_killed,
                Storm.hidden_ends,
            ):
                with self.busy:  # a new server.py does not know SIGHUP yet
                    fault(self)
            else:
                fault(self)

    def left(self) -> str:
        """What is left over, of whom; '' where nothing is."""
        left = [self.on.until_as_before(self.server.pid, self.before)]
        for hidden, before in zip(self.hidden, self.hidden_before, strict=True):
            left.append(self.on.until_as_before(hidden.program.pid, before))
            until(lambda one=hidden: len(one.relay.links) == REGISTRATIONS, 'connections', 20)
            until(lambda one=hidden: not one.origin.open, 'requests end at the origin')
        return '; '.join(each for each in left if each != 'none')

    def report(self) -> bool:
        """Prints what came of it; whether all is well."""
        lines = (self.on.path / 'joined.log').read_text().splitlines()
        joined = [json.loads(line) for line in lines]
        reasons, bad = Counter(), []
        for uuid, outcome in self.outcomes:
            if outcome.saw != 'good':
                reason = outcome.saw != 'WRONG' and self.why(uuid, outcome, joined)
                reasons[reason] += 1
                if not reason:
                    bad.append(outcome)
        wrong = [name for hidden in self.hidden for name in hidden.origin.wrong]
        wrong += [each.request.name for _, each in self.outcomes if each.saw == 'WRONG']
        good = sum(outcome.saw == 'good' for _, outcome in self.outcomes)
        print(
            f'requests: {len(self.outcomes)}, good: {good}, given up by the mobile client itself: '
            f'{self.left_by_themselves}'
        )
        print(f'failed, and what hit their own connection: {dict(reasons)}')
        print(f'failed, and nothing hit their own connection: {len(bad)}')
        for outcome in bad[:20]:
            print(f'    {outcome}')
            for at, link in self.served(outcome, joined):
                hits = [hit - at for hit in link.hits] if link else 'unknown'
                print(f'        joined {at - outcome.began:.3f} s after it began, hits: {hits}')
            for line in self.on.log().splitlines():
                if f':{outcome.port} ' in line:
                    print(f'        {line}')
        print(f'wrong octets: {len(wrong)} {wrong[:5]}')
        print(f'seconds from a new server to answers of all: {sorted(self.backs)[-3:]}')
        left = self.left()
        tracebacks = self.on.log().count('Traceback')
        print(f'left over: {left or "nothing"}; tracebacks in server.log: {tracebacks}')
        late = [seconds for seconds in self.backs if seconds > BACK_SECONDS]
        return not (bad or wrong or late or left or tracebacks)


def main() -> int:
    count = int(sys.argv[1]) if sys.argv[1:] else 1000
    seed = int(sys.argv[2]) if sys.argv[2:] else random.randrange(10**6)
    print(f'{count} events, seed {seed}', flush=True)
    with common.stage() as on, gevent.Timeout(BOUND_SECONDS, TimeoutError('it took too long')):
        storm, began = Storm(on, seed), time.monotonic()
        print(dict(storm.blow(count)), f'in {time.monotonic() - began:.0f} s')
        return 0 if storm.report() else 1


if __name__ == '__main__':
    sys.exit(main())
