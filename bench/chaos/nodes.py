"""A storm over three nodes of two workers: random faults, and a steady load that is checked.

    .venv/bin/python bench/chaos/nodes.py [FAULTS [SEED]]

Nodes and workers are killed, frozen, restarted and renewed; two nodes are split while both see
Redis, which needs root for network namespaces; Redis, a primary with a replica and a Sentinel, is
killed, frozen, flushed (the entries are put back in the same transaction) and failed over.

1,000 faults took 14 minutes on two busy cores; 20 is the bound. Status 1 where an octet was wrong,
where a mobile client got another hidden server than it asked for, where a request failed that no
fault had hit, or where anything is left over.

A fault hits a request where it is one of the node or the worker that the mobile client is with, or
of the worker that held the registration: probe.py tells which those were. A new version hits
nobody, and Redis only who waited in vain while it was away: nobody can register then, and those who
had are used up. Of what failed, the last of these faults is told.
"""

from gevent import monkey

monkey.patch_all()

import math
import os
import random
import re
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from itertools import combinations
from pathlib import Path

import common
import gevent
from checked import WRONG
from common import Mobile, Origin, Outcome, Probed, Request, until
from faults import why_not
from gevent.lock import RLock
from gevent.pool import Pool
from processes import connections, stop
from three import WORKERS, Networks, Node, Three, Watched, frozen

from rendezvous.store import keys, state
from rendezvous.store.facts import Known

CLIENTS, AT_A_TIME, PACE_SECONDS = 8, 6, 0.3
HIDDEN, REGISTRATIONS = 4, 4
BOUND_SECONDS = 1200
REQUEST_SECONDS = 60
LATE_SECONDS = 30  # no fault is an excuse for a request that ends so late
AWAY_SECONDS = 3  # at most, of whatever is frozen or split
SLACK_SECONDS = 0.75  # between a fault and what a busy machine sees of it
LEFT_SECONDS = 90  # until nothing is left over
PASSING = 'node frozen', 'worker frozen', 'split'
REDIS = 'Redis away'  # an excuse for nothing but this: whoever had registered was used up
LARGE_BYTES, SMALL_BYTES = 10_000_000, 10_000
SLOWEST = int(os.environ.get('SLOWEST', 0))  # of those that nothing hit: so many are explained
REDIS_PORTS: set[int] = set()  # of this run


class Hit:
    """A fault, from its beginning to its end, and whom it hits."""

    def __init__(self, kind: str, hosts=(), pids=(), ports=(), uuid: str = '', of: str = ''):
        self.kind, self.began, self.ended = kind, time.monotonic(), math.inf
        self.hosts, self.pids, self.ports, self.uuid = set(hosts), set(pids), set(ports), uuid
        self.of = of  # the host that has the pids

    def overlaps(self, began: float, ended: float) -> bool:
        return self.began < ended and began - SLACK_SECONDS < self.ended


class ProbedNode(Probed, Node):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.install_probe()
        self.busy = RLock()  # it is being ended and started

    def pooled(self) -> set[int]:
        return self.links() | REDIS_PORTS

    def links(self) -> set[int]:
        """The ports of links."""
        first = self.options['node_port']
        return set(range(first, first + WORKERS))


class ProbedThree(Three):
    make = ProbedNode


class Hidden:
    """A hidden server with the addresses of all nodes."""

    def __init__(self, on: Three, number: int):
        self.on, self.uuid, self.origin = on, on.add(f'hidden-{number}'), Origin()
        self.busy = RLock()
        self.start()

    def start(self) -> None:
        self.program = self.on.hide(self.uuid, self.origin, count=REGISTRATIONS)


class Faults:
    """What happens. Each method is one fault, and picks whom it hits with `dice`."""

    LIKELY = {  # noqa: RUF012
        'node_is_killed': 3,
        'node_is_frozen': 8,
        'node_restarts': 2,
        'node_is_renewed': 3,
        'worker_is_killed': 14,
        'worker_is_frozen': 16,
        'nodes_are_split': 14,
        'redis_is_killed': 5,
        'redis_is_frozen': 5,
        'redis_is_flushed': 4,
        'redis_fails_over': 3,
        'hidden_server_is_killed': 5,
        'mobile_client_gives_up': 14,
    }

    def __init__(self, on: Three, redis: Watched, networks: Networks | None):
        self.on, self.redis, self.networks = on, redis, networks
        self.hidden = [Hidden(on, number) for number in range(HIDDEN)]
        self.hits: list[Hit] = []
        self.redis_busy = RLock()
        self.splits = {pair: RLock() for pair in combinations([n.host for n in on.nodes], 2)}
        self.asking: list[Mobile] = []
        self.not_renewed, self.troubles = 0, []  # of ours: what a fault was to do was not done
        if not networks:
            self.LIKELY = self.LIKELY | {'nodes_are_split': 0}

    @contextmanager
    def hit(self, *arguments, **more):
        hit = Hit(*arguments, **more)
        self.hits.append(hit)
        try:
            yield
        finally:
            hit.ended = time.monotonic()

    def _node(self, dice) -> ProbedNode:
        """One to which nothing happens now, if there is one."""
        return dice.choice([n for n in self.on.nodes if not n.busy.locked()] or self.on.nodes)

    def node_is_killed(self, dice) -> None:
        node = self._node(dice)
        with node.busy, self.hit('node killed', [node.host], node.pids(), of=node.host):
            node.kill()
            gevent.sleep(dice.uniform(0, 1))
            node.serve()

    def node_restarts(self, dice) -> None:
        """What its pipes carry is to come to its end; it takes nobody new."""
        node = self._node(dice)
        with node.busy, self.hit('node restarted', [node.host]):
            os.kill(node.parent, signal.SIGTERM)
            until(lambda: not node.pids(), 'it has ended', 60)
            node.serve()

    def node_is_renewed(self, dice) -> None:
        node = self._node(dice)
        with node.busy:
            self.not_renewed += not node.renew()  # Redis was away: the old version goes on

    def node_is_frozen(self, dice) -> None:
        node = self._node(dice)
        with node.busy:
            pids = sorted(node.pids(), key=node.workers().__contains__)  # the parent first
            with self.hit('node frozen', [node.host], pids, of=node.host), frozen(*pids):
                gevent.sleep(dice.uniform(0, AWAY_SECONDS))

    def worker_is_killed(self, dice) -> None:
        node = self._node(dice)
        with node.busy:
            pid = dice.choice(node.workers())
            stop(pid)  # while it does nothing, its connections stay what they are
            ports = {port for _, port in connections(pid)}
            with self.hit('worker killed', pids=[pid], ports=ports, of=node.host):
                os.kill(pid, signal.SIGKILL)

    def worker_is_frozen(self, dice) -> None:
        node = self._node(dice)
        with node.busy:
            pid = dice.choice(node.workers())
            with frozen(pid):
                ports = {port for _, port in connections(pid)}
                with self.hit('worker frozen', pids=[pid], ports=ports, of=node.host):
                    gevent.sleep(dice.uniform(0, AWAY_SECONDS))

    def nodes_are_split(self, dice) -> None:
        pair = dice.choice(list(self.splits))
        with self.splits[pair], self.hit('split', pair):
            self.networks.split(*pair)
            gevent.sleep(dice.uniform(0, AWAY_SECONDS))
            self.networks.mend(*pair)

    def redis_is_killed(self, dice) -> None:
        """... and started again before it is missed."""
        with self.redis_busy, self.hit(REDIS):
            self.redis.primary().kill()
            gevent.sleep(dice.uniform(0, 0.5))
            self.redis.servers[0].process.poll()
            for server in self.redis.servers:
                if server.process.poll() is not None:
                    server.start()
            self.redis.until_whole()

    def redis_is_frozen(self, dice) -> None:
        """For so short a time that it stays the primary, or for longer: another one is, then."""
        with self.redis_busy, self.hit(REDIS):
            before, is_long = self.redis.primary(), dice.random() < 0.3
            with frozen(before.pid):
                if is_long:
                    until(lambda: self.redis.primary() is not before, 'another one is promoted', 60)
                gevent.sleep(dice.uniform(0, 0.8))
            self.redis.until_whole()

    def redis_is_flushed(self, dice) -> None:
        """All but the entries is gone."""
        with self.redis_busy:
            uuids = [hidden.uuid for hidden in self.hidden]

            def flush(redis) -> None:
                entries = [redis.get(uuid) for uuid in uuids]
                with redis.pipeline(transaction=True) as commands:
                    commands.flushall()
                    for uuid, entry in zip(uuids, entries, strict=True):
                        commands.set(uuid, entry)
                    commands.execute()
                redis.wait(1, 1000)  # the replica has it

            self.on.entries.ask(flush)

    def redis_fails_over(self, dice) -> None:
        with self.redis_busy, self.hit(REDIS):
            self.redis.fail_over()

    def hidden_server_is_killed(self, dice) -> None:
        hidden = dice.choice(self.hidden)
        with hidden.busy, self.hit('hidden server killed', uuid=hidden.uuid):
            hidden.program.end(signal.SIGKILL)
            hidden.start()

    def mobile_client_gives_up(self, dice) -> None:
        if self.asking:
            dice.choice(self.asking).give_up(reset=dice.random() < 0.5)


class Storm(Faults):
    """The load, and what came of it."""

    def __init__(self, on: Three, redis: Watched, networks: Networks | None, seed: int):
        super().__init__(on, redis, networks)
        self._seed, self._dice, self._over = seed, random.Random(seed), False
        self._outcomes: list[tuple[Node, str, Outcome]] = []
        self.until_at_rest()
        self._before = self._inside()

    def blow(self, count: int) -> None:
        """So many faults, a few at a time."""
        load, blowing = [gevent.spawn(self._load) for _ in range(CLIENTS)], Pool(AT_A_TIME)
        names = self._dice.choices(list(self.LIKELY), list(self.LIKELY.values()), k=count)
        try:
            for number, name in enumerate(names):
                blowing.spawn(self._happen, name, random.Random(f'{self._seed} {number}'))
                gevent.sleep(PACE_SECONDS)
            blowing.join()
            self._over = True
            gevent.joinall(load, raise_error=True)  # a request that hangs counts, too
        finally:
            gevent.killall([*blowing, *load])  # else they start what is being ended
        print(f'all: {dict(Counter(names))}')

    def _happen(self, name: str, dice: random.Random) -> None:
        try:
            getattr(self, name)(dice)
        except (ProcessLookupError, IndexError):  # whom it was to hit has ended
            pass
        except Exception as error:  # the others go on
            self.troubles.append(f'{name}: {type(error).__name__}: {error}')
            print(f'{time.monotonic():.3f} {self.troubles[-1]}', flush=True)

    def _load(self) -> None:
        while not self._over:
            node, hidden = self._dice.choice(self.on.nodes), self._dice.choice(self.hidden)
            mobile = Mobile(node, hidden.uuid, seconds=REQUEST_SECONDS)
            self.asking.append(mobile)
            saw = 'good'
            for _ in range(self._dice.choice((1, 1, 1, 4))):
                if saw == 'good':
                    outcome = mobile.ask(self._request())
                    saw = 'given up' if mobile.gave_up else outcome.saw
                    self._outcomes.append((node, hidden.uuid, outcome._replace(saw=saw)))
            self.asking.remove(mobile)
            mobile.close()
            gevent.sleep(self._dice.uniform(0, 0.05 if saw == 'good' else 0.2))

    def _request(self) -> Request:
        most = self._dice.choices((3000, 1_000_000, LARGE_BYTES), (80, 18, 2))[0]
        up, down = (int(self._dice.uniform(0, most)) for _ in range(2))
        return Request(f'r{next(common.numbers)}', up, down)

    def report(self) -> bool:
        """Prints what came of it; whether all is well."""
        served, saw, why, harmed, cut = self._served(), Counter(), Counter(), [], []
        for node, uuid, outcome in self._outcomes:
            saw[outcome.saw] += 1
            if outcome.saw not in ('good', 'given up', *WRONG):
                reason = self._why(node, uuid, outcome, served)
                why[reason] += 1
                is_late = outcome.ended - outcome.began > LATE_SECONDS
                harmed += [] if reason and not is_late else [(node, uuid, outcome)]
                if reason in PASSING:
                    cut.append((node, uuid, outcome))
        wrong = sum(len(hidden.origin.wrong) for hidden in self.hidden)
        crossed = sum(len({pid for _, pid, *_ in each}) > 1 for each in served.values())
        print(f'{len(self._outcomes)} requests: {dict(saw)}; connections that crossed: {crossed}')
        print(f'failed, by what hit their own connection: {dict(why)}')
        print(f'failed, and nothing hit their own connection, or late: {len(harmed)}')
        for each in harmed[:20]:
            self._explain(*each, served)
        print(f'failed by what passes, and cuts nothing by itself: {len(cut)}')
        for each in cut[:20]:
            self._explain(*each, served)
        print(f'new versions that were refused while Redis was away: {self.not_renewed}')
        self._tell_times(served)
        print(f'faults that did not come about: {self.troubles or "none"}')
        tracebacks = sum(node.log().count('Traceback') for node in self.on.nodes)
        left = self._left()
        print(f'wrong octets: {wrong + saw["WRONG"]}; wrong UUIDs: {saw["WRONG UUID"]}')
        print(f'left over: {left or "nothing"}; tracebacks: {tracebacks}')
        return not (
            harmed
            or self.troubles
            or wrong
            or any(saw[each] for each in WRONG)
            or left
            or tracebacks
        )

    def _served(self) -> dict[int, list[tuple]]:
        """By port of the mobile client, its pipes: when, which process of which node, whether that
        had the hidden server itself.
        """
        found: dict[int, list[tuple]] = {}
        links = {0} | self.on.nodes[0].links()
        for node in self.on.nodes:
            for at, pid, mobile_port, hidden_port in node.joined():
                row = at, pid, node.host, hidden_port not in links
                found.setdefault(mobile_port, []).append(row)
        return {port: sorted(rows) for port, rows in found.items()}

    def _pipes(self, outcome: Outcome, served: dict[int, list[tuple]]) -> list[tuple]:
        """The last one of a request, on each worker that had a part of it."""
        rows = served.get(outcome.port, [])
        rows = [row for row in rows if outcome.since <= row[0] <= outcome.ended]
        crossing = [number for number, row in enumerate(rows) if not row[3]]
        return rows[crossing[-1] :] if crossing else rows[-1:]

    def _why(self, node: Node, uuid: str, outcome: Outcome, served: dict) -> str:
        """What hit the connections of this very request; '' where nothing did."""
        pipes = self._pipes(outcome, served)
        since = min([outcome.began, *(row[0] for row in pipes)])
        pids, hosts = {row[1] for row in pipes}, {node.host, *(row[2] for row in pipes)}
        if pipes and not any(row[3] for row in pipes):  # its holder was hit before it could say so
            hosts |= set(
                re.findall(rf':{outcome.port} rendezvous with {uuid}, on node (\S+)', node.log())
            )
            pids |= {pid for hit in self.hits if hit.of in hosts for pid in hit.pids}
        for hit in reversed(self.hits):
            if not hit.overlaps(since, outcome.ended):
                continue
            is_here = node.host in hit.hosts and hit.kind != 'split'
            is_split = hit.kind == 'split' and hit.hosts <= hosts
            if is_here or is_split or pids & hit.pids or outcome.port in hit.ports:
                return hit.kind
            if hit.uuid == uuid:
                return hit.kind
            if hit.kind == REDIS and outcome.saw == '503':
                return hit.kind
        return ''

    def _explain(self, node: Node, uuid: str, outcome: Outcome, served: dict) -> None:
        print(f'    of {uuid} at {node.host}: {outcome}')
        for at, pid, host, is_own in served.get(outcome.port, ()):
            print(f'      at {at:.3f} joined by {pid} of {host}' + ', which held it' * is_own)
        for hit in self.hits:
            if hit.overlaps(outcome.began - 2, outcome.ended + 1):
                print(f'      {hit.began:.3f} to {hit.ended:.3f} {hit.kind} {hit.hosts} {hit.pids}')
        for each in self.on.nodes:
            for line in each.log().splitlines():
                if f':{outcome.port} ' in line:
                    print(f'      {each.host} {line}')

    def _tell_times(self, served: dict) -> None:
        """Of small requests that were good and that no fault hit, though it may have hit others."""
        small = [
            each
            for each in self._outcomes
            if each[2].saw == 'good' and each[2].request.up + each[2].request.down < SMALL_BYTES
        ]
        calm = [each for each in small if not self._why(*each, served)]
        took = sorted(outcome.ended - outcome.began for *_, outcome in calm)
        if len(took) < 100:
            return
        shares = statistics.quantiles(took, n=1000)
        print(
            f'{len(took)} small ones that nothing hit took: half {shares[499]:.3f} s, '
            f'99 % {shares[989]:.3f} s, 99.9 % {shares[998]:.3f} s, all {took[-1]:.1f} s'
        )
        slow = sorted(calm, key=lambda each: each[2].began - each[2].ended)
        for each in slow[:SLOWEST]:
            self._explain(*each, served)

    def until_at_rest(self) -> None:
        """All workers serve, and all registrations wait."""
        for node in self.on.nodes:
            node.until_all_workers_serve()
        self.on.until_all_serve()
        for hidden in self.hidden:
            until(
                lambda u=hidden.uuid: sum(self.on.hints(u).values()) == REGISTRATIONS,
                f'{REGISTRATIONS} registrations of {hidden.uuid} wait',
                LEFT_SECONDS,
            )

    def _inside(self) -> Counter[str]:
        """What all workers have together, without their links."""
        found: Counter[str] = Counter()
        for node in self.on.nodes:
            found.update(node.inside())
            found['processes'] += len(node.pids())
            for pid in node.worker_pids:
                found['files'] += sum(not is_socket(pid, name) for name in descriptors(pid))
        return found

    def _left(self) -> str:
        left = []
        try:
            self.until_at_rest()
            until(self._is_as_before, 'nothing is left over in the workers', LEFT_SECONDS)
            until(lambda: not self.on.left_in_redis(), 'nothing is left in Redis', LEFT_SECONDS)
            for hidden in self.hidden:
                left += [f'open at the origin: {name}' for name in hidden.origin.open]
                if (known := self._known(hidden)).state != state.ONLINE:
                    left.append(
                        f'{known} of {hidden.uuid}, which waits: {self.on.hints(hidden.uuid)}'
                    )
                hidden.program.end()
            until(self._are_all_offline, 'all are offline, and no hint is left', LEFT_SECONDS)
            left += [f'{node.host} has not ended well' for node in self.on.nodes if node.end()]
            until(lambda: not self._of_workers(), 'nothing of the workers is left in Redis')
        except AssertionError as error:
            left += [f'{error}: {self._inside() - self._before} {self.on.left_in_redis()}']
        return '; '.join(left)

    def _is_as_before(self) -> bool:
        more = self._inside() - self._before
        return not more

    def _known(self, hidden: Hidden) -> Known:
        entries = self.on.entries
        return state.known_of(entries, state.server(entries), hidden.uuid)

    def _are_all_offline(self) -> bool:
        hints = self.on.entries.ask(lambda redis: list(redis.scan_iter(keys.of(keys.PLACES, '*'))))
        return not hints and all(self._known(each).state == state.OFFLINE for each in self.hidden)

    def _of_workers(self) -> list[str]:
        return self.on.entries.ask(
            lambda redis: [
                *redis.scan_iter(keys.live('*')),
                *redis.scan_iter(keys.of(keys.PLACES, '*')),
                *redis.zrange(keys.SERVERS, 0, -1),
            ]
        )


def descriptors(pid: int) -> list[str]:
    with suppress(OSError):
        return os.listdir(f'/proc/{pid}/fd')
    return []


def is_socket(pid: int, name: str) -> bool:
    with suppress(OSError):
        return os.readlink(f'/proc/{pid}/fd/{name}').startswith('socket:')
    return True


def main() -> int:
    count = int(sys.argv[1]) if sys.argv[1:] else 1000
    seed = int(sys.argv[2]) if sys.argv[2:] else random.randrange(10**6)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(f'{count} faults, seed {seed}', flush=True)
    with ExitStack() as stack:
        stack.enter_context(gevent.Timeout(BOUND_SECONDS, TimeoutError('it took too long')))
        path = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        reason = why_not()
        if reason:
            print(f'no nodes are split: {reason}')
        networks = None if reason else stack.enter_context(Networks())
        here = networks.here if networks else '127.0.0.1'
        redis = stack.enter_context(Watched(path / 'redis', here))
        REDIS_PORTS.update(redis.ports)
        on = stack.enter_context(ProbedThree(path, redis.options, networks))
        storm, began = Storm(on, redis, networks, seed), time.monotonic()
        storm.blow(count)
        print(f'{time.monotonic() - began:.0f} s')
        return 0 if storm.report() else 1


if __name__ == '__main__':
    sys.exit(main())
