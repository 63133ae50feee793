"""The server as a whole, in figures: the top of the first page and `users_app.py status` say them.

Times are in seconds since 1970.
"""

import re
from typing import NamedTuple

from cryptography.x509.oid import NameOID

from rendezvous.admin import certificate, nodes, visits, words
from rendezvous.admin.certificate import Found
from rendezvous.admin.nodes import Node
from rendezvous.admin.words import Clock
from rendezvous.store.client import place
from rendezvous.store.entry_json import printable
from rendezvous.store.options import Options
from rendezvous.store.state import Heard, Hour, Server
from rendezvous.wire.programs import Mistake


class Certificate(NamedTuple):
    """The one that clients see, where the server has one."""

    end: float
    left: str  # until then; '': it is over
    issuer: str


class Summary(NamedTuple):
    """What is known of the server."""

    is_up: bool
    heard: Heard | None  # the last sign of a worker; None: it never ran
    since: float | None  # the first of the workers that live began, or began that were heard last
    lasted: str  # it is up for so long, or was until `heard`
    silent: str  # no worker has given a sign for so long
    versions: str
    nodes: list[Node]  # those that live
    gone: tuple[Heard, ...]  # the last signs of those that ended without a word
    workers: int
    missing: int  # workers that there should be
    memory: int  # octets
    connections: int
    most: int  # connections that all nodes together take
    store: str  # where the entries are
    certificate: Certificate | None  # None: it has none, or the notice says what is wrong
    hours: list[Hour]  # the last 24 of all hidden servers together

    @property
    def day(self) -> Hour:
        """All of the last 24 hours."""
        return visits.total(self.hours)

    @property
    def has_nodes(self) -> bool:
        """Whether there are several: one alone is the server, and needs no list."""
        return len(self.nodes) + len(self.gone) > 1

    @property
    def well(self) -> str:
        """`2 of 3 nodes` where not all of them are; '': they are."""
        count = sum(not each.alone for each in self.nodes)
        total = len(self.nodes) + len(self.gone)
        return f'{count} of {words.plural(total, "node")}' if count < total else ''

    @property
    def newest(self) -> str:
        """The newest version of a node; another one waits for its upgrade."""
        return max((each.version for each in self.nodes), key=_numbers, default='')

    @property
    def where(self) -> str:
        """The workers are `on 1 machine`, or `on 3 nodes`."""
        count = len(self.nodes)
        return f'on {words.plural(count, "node" if self.has_nodes else "machine")}' if count else ''


def of(options: Options, server: Server, hours: list[Hour], clock: Clock) -> Summary:
    """`hours`: the last 24 of all hidden servers together."""
    workers, heard, now = server.workers, server.heard, clock.present()
    since = min((each.since for each in workers), default=heard and heard.since)
    end = now if workers or not heard else heard.at
    found = nodes.of(server)
    versions = {each.version for each in workers} or {heard.version if heard else ''}
    return Summary(
        is_up=bool(workers),
        heard=heard,
        since=since,
        lasted=_length(end - since) if since else '',
        silent=_length(now - heard.at) if heard else '',
        versions=' and '.join(sorted(versions)),
        nodes=found,
        gone=server.gone,
        workers=len(workers),
        missing=sum(each.missing for each in found),
        memory=sum(each.memory for each in workers),
        connections=sum(each.connections for each in workers),
        most=sum(each.most for each in workers),  # those of a node share them
        store=_store(options),
        certificate=_certificate(options, now),
        hours=hours,
    )


def _numbers(version: str) -> list[int]:
    return [*map(int, re.findall('[0-9]+', version))]


def _length(seconds: float) -> str:
    """In minutes at least: a page in which each second counts would be sent again each time."""
    return words.length(seconds) if seconds >= words.MINUTE else 'less than a minute'


def _store(options: Options) -> str:
    return 'the embedded store' if options.has_embedded_store else str(place(options))


def _certificate(options: Options, now: float) -> Certificate | None:
    if not options.key_file:
        return None
    try:
        found = certificate.read(options)
    except Mistake:
        return None
    end = found.leaf.not_valid_after_utc.timestamp()
    return Certificate(end, words.length(end - now) if end > now else '', _issuer(found))


def _issuer(found: Found) -> str:
    if found.is_ours:
        return 'an authority of its own'
    for kind in NameOID.ORGANIZATION_NAME, NameOID.COMMON_NAME:
        if names := found.leaf.issuer.get_attributes_for_oid(kind):
            return printable(names[0].value)
    return 'an unknown authority'
