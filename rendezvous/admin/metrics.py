"""`/metrics`: what the server, its workers and the entries do, as Prometheus reads it.

One page shows all nodes that share its Redis. Counters are those of each worker since it began, so
a worker that starts anew begins at 0, as `rate()` of Prometheus expects; its labels stay the same,
because it takes the number of the one before it. No UUID, label or address is in an answer.

A foreign web page cannot know the token: so neither the login nor a check of the Host is needed.
"""

import hmac
import re
from collections.abc import Iterator

import gevent
from flask import Response, abort, request
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.core import CounterMetricFamily as Count
from prometheus_client.core import GaugeMetricFamily as Gauge
from prometheus_client.core import Metric

from rendezvous.admin import certificate, nodes
from rendezvous.admin.look import Look, Looks
from rendezvous.admin.nodes import Node
from rendezvous.admin.page_server import HANDLER
from rendezvous.store import state
from rendezvous.store.entries import Entries, StoreDown, slices
from rendezvous.store.options import Options
from rendezvous.store.state import Server, Worker
from rendezvous.wire.programs import Mistake

LOOK_SECONDS = 5  # then Redis counts as down: Prometheus itself gives up after 10
NEEDED = 'The request needs the header "Authorization: Bearer TOKEN", with metrics_token.\n'
WORKER = 'node', 'worker'  # the labels that say which one it is

_REFUSED = re.compile('refused ([1-5][0-9][0-9]) (.+)')
_COUNTERS = {  # of a worker: its name there, its name here, what it counts
    'handshakes': ('handshakes', 'TLS handshakes that succeeded.'),
    'handshakes_failed': ('handshakes_failed', 'TLS handshakes that failed.'),
    'registrations': ('registrations', 'Registrations of hidden servers that were accepted.'),
    'rendezvous': ('made', 'Rendezvous: mobile clients that were joined to a hidden server.'),
    'crossed': ('crossed', 'Rendezvous whose hidden server waited on another node.'),
    'store_errors': ('store_errors', 'Questions to Redis that got no answer, or an error.'),
}
_AHEAD = 'Seconds that the clock of a node is ahead of that of Redis.'
_DIRECTIONS = {'octets_up': 'up', 'octets_down': 'down'}


Labelled = list[tuple[list[str], Worker]]  # workers with the values of WORKER


class Metrics:
    """Answers requests for `/metrics`."""

    def __init__(self, entries: Entries, options: Options, looks: Looks):
        self._options, self._looks = options, looks

    def view(self) -> Response:
        """Without the option `metrics_token` there is no such page."""
        token = self._options.metrics_token or abort(404)
        if not _has_token(token):
            challenge = {'WWW-Authenticate': 'Bearer realm="metrics"'}
            return Response(NEEDED, 401, challenge, content_type='text/plain; charset=utf-8')
        request.environ[HANDLER].admitted = True
        text = generate_latest(Collected(self._look(), self._options))
        return Response(text, content_type=CONTENT_TYPE_PLAIN_0_0_4)

    def _look(self) -> Look | None:
        """None: Redis does not answer, or not soon enough."""
        looking = gevent.spawn(self._current)  # it ends by itself, however long Redis takes
        looking.join(LOOK_SECONDS)
        return looking.value

    def _current(self) -> Look | None:
        try:
            return self._looks.current()
        except StoreDown:  # rendezvous_store_up says so
            return None


def _has_token(token: str) -> bool:
    """Whether the request shows it; to compare takes as long, wherever they differ."""
    given = request.authorization
    shown = (given and given.type == 'bearer' and given.token) or ''
    return hmac.compare_digest(shown.encode(), token.encode())


class Collected:
    """What one answer holds, for prometheus_client."""

    def __init__(self, look: Look | None, options: Options):
        self._look, self._options = look, options

    def collect(self) -> Iterator[Metric]:
        yield _value('store_up', '1: Redis answers the page. 0: it does not.', bool(self._look))
        if self._look:
            yield from _of_server(self._look.server)
            yield from _of_nodes(nodes.of(self._look.server))
            yield from _of_entries(self._look)
            workers = _labelled(self._look.server.workers)
            yield from _of_workers(workers)
            yield from _counters(workers)
        yield _ends(self._options)


def _of_server(server: Server) -> Iterator[Metric]:
    yield _value('server_up', '1: a worker gives signs. 0: none does.', bool(server.workers))
    text = 'When a worker gave its last sign, in seconds since 1970.'
    yield _value('last_sign_timestamp_seconds', text, server.heard.at if server.heard else None)
    yield _value('nodes_gone', 'Nodes that ended without a word.', len(server.gone))


def _of_nodes(found: list[Node]) -> Iterator[Metric]:
    text = 'When the server of a node began, in seconds since 1970; an upgrade changes nothing.'
    began = _gauge('server_start_timestamp_seconds', text, 'node')
    info = _gauge('server_info', 'Always 1; a label says the version.', 'node', 'version')
    ready = _gauge('workers', 'Workers of a node that give signs.', 'node')
    wanted = _gauge('workers_wanted', 'Workers that a node shall have.', 'node')
    draining = _gauge('draining', '1: the node takes no new connections, to end.', 'node')
    ahead = _gauge('clock_ahead_seconds', _AHEAD, 'node')
    for node in found:
        began.add_metric([node.name], node.since)
        ready.add_metric([node.name], node.workers)
        wanted.add_metric([node.name], node.wanted)
        info.add_metric([node.name, node.version], 1)
        draining.add_metric([node.name], bool(node.draining))
        ahead.add_metric([node.name], node.ahead)
    yield from (began, info, ready, wanted, draining, ahead)


def _of_entries(look: Look) -> Iterator[Metric]:
    entries = _gauge('entries', 'Entries, by the state of their hidden server.', 'state')
    for name in state.STATES:
        entries.add_metric([name], look.counts.get(name, 0))
    yield entries
    known = [row.known for some in slices(look.rows) for row in some]
    text = 'Registrations that wait for a rendezvous.'
    yield _value('registrations_waiting', text, sum(each.waiting for each in known))
    yield _value('pipes', 'Rendezvous that are not over.', sum(each.pipes for each in known))


def _of_workers(workers: Labelled) -> Iterator[Metric]:
    taken = _gauge('connections', 'Open connections of a worker.', *WORKER)
    most = _gauge('connections_max', 'Connections that a worker takes at the most.', *WORKER)
    memory = _gauge('memory_bytes', 'Memory that a worker has for itself alone.', *WORKER)
    links = _gauge('links', 'Connections of a worker to those of other nodes.', *WORKER)
    for labels, worker in workers:
        taken.add_metric(labels, worker.connections)
        most.add_metric(labels, worker.most)
        memory.add_metric(labels, worker.memory)
        links.add_metric(labels, worker.links)
    yield from (taken, most, memory, links)


def _counters(workers: Labelled) -> Iterator[Metric]:
    for there, (here, text) in _COUNTERS.items():
        counter = _counter(here, text)
        for labels, worker in workers:
            counter.add_metric(labels, worker.counters.get(there, 0))
        yield counter
    traffic = _counter(
        'traffic_bytes',
        'Octets through pipes: up from mobile clients, down from hidden servers.',
        'direction',
    )
    refused = _counter('refused', 'Requests that were refused.', 'status', 'reason')
    for labels, worker in workers:
        for there, direction in _DIRECTIONS.items():
            traffic.add_metric([*labels, direction], worker.counters.get(there, 0))
        for name, count in worker.counters.items():
            if found := _REFUSED.fullmatch(name):
                refused.add_metric([*labels, *found.groups()], count)
    yield from (traffic, refused)


def _ends(options: Options) -> Metric:
    """Of the certificate on the page's machine; nothing where there is none that can be read."""
    text = 'When the certificate, or the authority that signed it, ends, in seconds since 1970.'
    ends = _gauge('certificate_end_timestamp_seconds', text, 'certificate')
    try:
        found = certificate.read(options) if options.key_file else None
    except Mistake:
        return ends
    if found:
        ends.add_metric(['server'], found.leaf.not_valid_after_utc.timestamp())
    if found and found.authority:
        ends.add_metric(['authority'], found.authority.not_valid_after_utc.timestamp())
    return ends


def _labelled(workers: list[Worker]) -> Labelled:
    """Each with its labels: Prometheus takes no two samples that have the same ones."""
    return [
        ([node, str(worker.number)], worker)
        for node, some in nodes.by_name(workers).items()
        for worker in nodes.newest(some)
    ]


def _value(name: str, text: str, value: float | None) -> Metric:
    """A gauge without labels; None: there is none at the moment."""
    return Gauge(f'rendezvous_{name}', text, value)


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    return Gauge(f'rendezvous_{name}', text, labels=labels)


def _counter(name: str, text: str, *labels: str) -> Count:
    """One of each worker, since it began."""
    return Count(f'rendezvous_{name}', text, labels=[*WORKER, *labels])
