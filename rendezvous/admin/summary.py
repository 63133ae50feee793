"""The server as a whole, as the top of the first page says it."""

from typing import NamedTuple

from markupsafe import Markup

from rendezvous.admin import certificate, pictures, status, words
from rendezvous.admin.words import Clock
from rendezvous.store.options import Options
from rendezvous.store.state import Heard, Hour, Server
from rendezvous.wire.addresses import authority
from rendezvous.wire.programs import Mistake


class Certificate(NamedTuple):
    """The one that clients see, where the server has one."""

    end: float  # in seconds since 1970
    left: str  # until then; '': it is over
    issuer: str


class Summary(NamedTuple):
    """What is known of the server. Times are in seconds since 1970."""

    is_up: bool
    heard: Heard | None  # the last sign of a worker; None: it never ran
    since: float | None  # it is up, or was until `heard`
    lasted: str  # for so long
    silent: str  # no worker has given a sign for so long
    versions: str
    nodes: list[str]
    workers: int
    missing: int  # workers that there should be
    memory: int  # octets
    connections: int
    most: int  # connections that are taken
    meter: Markup
    store: str  # where the entries are
    certificate: Certificate | None
    day: Hour  # the last 24 hours
    spark: Markup


def of(options: Options, server: Server, hours: list[Hour], clock: Clock) -> Summary:
    """`hours`: the last 24 of all hidden servers together."""
    workers, heard, now = server.workers, server.heard, clock.present()
    since = status.up_since(server) if workers else heard and heard.since
    end = now if workers or not heard else heard.at
    of_node = {worker.node: worker.workers for worker in workers}
    connections, most = sum(each.connections for each in workers), status.most(workers)
    versions = {each.version for each in workers} or {heard.version if heard else ''}
    return Summary(
        is_up=bool(workers),
        heard=heard,
        since=since,
        lasted=words.length(end - since) if since else '',
        silent=words.length(now - heard.at) if heard else '',
        versions=' and '.join(sorted(versions)),
        nodes=sorted(of_node),
        workers=len(workers),
        missing=max(0, sum(of_node.values()) - len(workers)),
        memory=sum(each.memory for each in workers),
        connections=connections,
        most=most,
        meter=pictures.meter(connections, most, 'connections'),
        store=_store(options),
        certificate=_certificate(options, now),
        day=Hour(*map(sum, zip(*hours, strict=True))),
        spark=pictures.spark(hours, pictures.traffic_words(hours, 'in the last 24 hours')),
    )


def _store(options: Options) -> str:
    if options.redis_host is None:
        return 'the embedded store'
    return f'Redis at {authority(options.redis_host, options.redis_port)}'


def _certificate(options: Options, now: float) -> Certificate | None:
    if not options.key_file:
        return None
    try:
        found = certificate.read(options)
    except Mistake:
        return None  # the notice on the page says what is wrong
    end = status.end(found)
    return Certificate(end, words.length(end - now) if end > now else '', status.issuer(found))
