"""The nodes: servers that share one Redis, each with a parent process and its workers.

Times are in seconds since 1970.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from rendezvous.admin import words
from rendezvous.admin.words import Clock
from rendezvous.store import hints
from rendezvous.store.entries import Entries
from rendezvous.store.entry_json import printable
from rendezvous.store.state import Heard, Server, Worker

# Signs are up to two seconds late, and a code is still right with a clock that is 30 seconds off.
CLOCK_SECONDS = 10
# A node that began so long ago has links to others: it looks for them each two seconds, and a sign
# is up to ten seconds old.
LINK_SECONDS = 30
NO_HOST = 'it has no node_host: mobile clients elsewhere do not find its hidden servers'
NO_LINK = 'it has no link to other nodes: another node_secret, or a firewall at node_port'
NOT_REACHED = (
    'it does not reach {}: its mobile clients do not find the hidden servers there; open node_port '
    'and the ports behind it there'
)


class Node(NamedTuple):
    """One that lives: at least one of its workers does."""

    name: str  # `node_host`, or the host name; with more where several have the same one
    host: str  # the host name
    address: str  # where other nodes reach its first worker; '': they cannot
    pid: int  # of its parent
    since: float  # when that began
    draining: float  # since then it takes no new connections, to end; 0: it does take them
    version: str  # of the workers that began last
    workers: int  # that live
    wanted: int  # workers that there should be
    connections: int
    most: int  # connections that it takes
    memory: int  # octets
    waiting: int  # registrations
    pipes: int
    links: int
    ahead: float  # seconds that its clock is ahead of that of Redis
    alone: str = ''  # what is to be looked at where it has no links, and should; '': nothing
    not_reached: tuple[str, ...] = ()  # names of nodes that live and do not answer it

    @property
    def missing(self) -> int:
        """Workers that there should be; one that ends loses them one after the other."""
        return 0 if self.draining else max(0, self.wanted - self.workers)

    @property
    def is_off(self) -> bool:
        """Whether its clock is."""
        return abs(self.ahead) > CLOCK_SECONDS

    @property
    def wrong(self) -> list[str]:
        """What is not well, a sentence each."""
        found = [self.alone] if self.alone else []
        if self.not_reached and not self.alone:
            found.append(NOT_REACHED.format(', '.join(map(printable, self.not_reached))))
        if self.is_off:
            found.append(clock_said(self))
        return found


def by_name(workers: Sequence[Worker]) -> dict[str, list[Worker]]:
    """The workers of each node. Two servers of one machine are two."""
    ordered = sorted(workers, key=_of)
    groups = {key: list(some) for key, some in groupby(ordered, _of)}
    alike = Counter(node for node, _ in groups)
    return {node if alike[node] == 1 else more: some for (node, more), some in groups.items()}


def _of(worker: Worker) -> tuple[str, str]:
    """The name of its node, and what only this one can have where several have that name."""
    host, _, port = worker.address.rpartition(':')
    if host and port.isdecimal():
        return worker.node, f'{host}:{int(port) - worker.number + 1}'
    return worker.node, f'{worker.node} (process {worker.pid})'


def newest(workers: Sequence[Worker]) -> list[Worker]:
    """Of each number on a node that one which began last: two have it during an upgrade."""
    ordered = sorted(workers, key=lambda worker: (worker.counters.get('began', 0), worker.at))
    return list({worker.number: worker for worker in ordered}.values())


def of(server: Server) -> list[Node]:
    found = by_name(server.workers)
    made = [_node(name, some) for name, some in found.items()]
    settled = [each for each in made if not each.draining and _is_settled(found[each.name])]
    serve = {
        worker.name: each.name for each in made if not each.draining for worker in found[each.name]
    }
    return [
        each._replace(
            alone=_alone(each, settled), not_reached=_not_reached(found[each.name], serve)
        )
        for each in made
    ]


def _not_reached(workers: list[Worker], serve: dict[str, str]) -> tuple[str, ...]:
    """Nodes that one of these workers does not reach. `serve`: by worker, the name of its node."""
    names = {name for worker in workers for name in worker.not_reached}
    return tuple(sorted({serve[name] for name in names & serve.keys()}))


def _is_settled(workers: list[Worker]) -> bool:
    """Whether each of its workers has had time for links, as of its last sign."""
    return all(
        each.at - max(each.since, each.counters.get('began', 0)) > LINK_SECONDS for each in workers
    )


def _alone(node: Node, settled: list[Node]) -> str:
    """See Node.alone. Where one is alone because no other one can be reached, it says nothing."""
    if node.links or node not in settled or len(settled) < 2:
        return ''
    if not node.address:
        return NO_HOST
    return NO_LINK if any(each.address for each in settled if each is not node) else ''


def _node(name: str, workers: list[Worker]) -> Node:
    now = newest(workers)
    first = min(now, key=lambda worker: worker.number)
    return Node(
        name=name,
        host=first.host,
        address=_of(first)[1] if first.address else '',
        pid=first.pid,
        since=min(worker.since for worker in workers),
        draining=max(worker.draining for worker in now),
        version=max(now, key=lambda worker: worker.counters.get('began', 0)).version,
        workers=len(now),
        wanted=max(worker.workers for worker in now),
        connections=sum(worker.connections for worker in workers),
        most=sum(worker.most for worker in workers),  # they share what the node takes
        memory=sum(worker.memory for worker in workers),
        waiting=sum(worker.waiting for worker in workers),
        pipes=sum(worker.pipes for worker in workers),
        links=sum(worker.links for worker in workers),
        ahead=min((worker.ahead for worker in now), key=abs),  # a batch may have come late
    )


def where(entries: Entries, server: Server, uuid: str) -> str:
    """On which nodes a hidden server is: `192.0.2.1 (3 waiting, 1 open), 192.0.2.2 (1 waiting)`.

    '' where there is one node alone. Raises StoreDown.
    """
    found = by_name(server.workers)
    if len(found) < 2:
        return ''
    places, said = hints.places(entries, uuid), []
    for name, workers in found.items():
        there = [places.get(worker.name, (0, 0)) for worker in workers]
        sums = zip(map(sum, zip(*there, strict=True)), ('waiting', 'open'), strict=True)
        if counts := ', '.join(f'{count} {what}' for count, what in sums if count):
            said.append(f'{printable(name)} ({counts})')
    return ', '.join(said)


def troubles(nodes: Sequence[Node], gone: Sequence[Heard], clock: Clock) -> list[str]:
    """What is not well, a sentence each."""
    found = [f'node {printable(each.node)} {gone_said(each, clock)}' for each in gone]
    return found + [f'node {printable(each.name)}: {said}' for each in nodes for said in each.wrong]


def gone_said(heard: Heard, clock: Clock) -> str:
    why = 'it was killed, hangs, or cannot reach Redis'
    return f'gave its last sign at {clock.at(heard.at)}: {why}'


def clock_said(node: Node) -> str:
    way = 'ahead of' if node.ahead > 0 else 'behind'
    return f'its clock is {words.apart(node.ahead)} {way} that of Redis: set it, with NTP'


def lines(nodes: Sequence[Node], gone: Sequence[Heard], clock: Clock) -> dict[str, list[str]]:
    """What `status` says of each, by name."""
    found = {printable(each.name): _said(each, clock) for each in nodes}
    return found | {printable(each.node): [gone_said(each, clock)] for each in gone}


def _said(node: Node, clock: Clock) -> list[str]:
    since = clock.since(node.draining or node.since)
    version = printable(node.version)
    state = f'{"draining" if node.draining else "up"} since {since}, version {version}'
    counts = f'{node.connections:,} of {node.most:,} connections, {node.waiting:,} waiting'
    counts += f', {words.plural(node.pipes, "pipe")}, {words.plural(node.links, "link")}'
    workers = f'{node.workers} of {words.plural(node.wanted, "worker")}, {words.size(node.memory)}'
    return [state, counts, workers, *node.wrong]
