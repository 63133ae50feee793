"""The rendezvous server as a whole, as the top of the page says it, and whether all is well."""

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from cryptography.x509.oid import NameOID

from rendezvous.admin import certificate, entry_files, listing, why, words
from rendezvous.admin.certificate import Found
from rendezvous.admin.listing import Listed
from rendezvous.admin.words import Clock
from rendezvous.store import state
from rendezvous.store.entries import Entries
from rendezvous.store.entry_json import Json, printable
from rendezvous.store.options import Options
from rendezvous.store.state import DAY_SECONDS, NEVER, OFFLINE, REFUSED, STATES, Hour, Server
from rendezvous.wire.programs import Mistake

COLUMNS = 80  # of a text


class Status(NamedTuple):
    """What is known of the server."""

    server: Server
    certificate: Found | None  # None: it has none, or `notice` says what is wrong
    notice: str  # what is or soon will be wrong with the certificate; '': nothing
    store: str  # where the entries are
    day: Hour  # the last 24 hours of all hidden servers together
    counts: dict[str, int]  # of the entries, by state


def find(
    entries: Entries, options: Options, server: Server, listed: Sequence[Listed], now: float
) -> Status:
    """Asks the store. Raises StoreDown."""
    _, hours = state.past(entries, [state.ALL], now - DAY_SECONDS, now)[state.ALL]
    counts = Counter(each.known.state for each in listed)
    found = None
    with suppress(Mistake):  # the notice says it, too
        found = certificate.read(options) if options.key_file else None
    return Status(
        server,
        found,
        certificate.notice(options),
        entries.where(),
        Hour(*map(sum, zip(*hours, strict=True))),
        {each: counts[each] for each in STATES},
    )


def for_programs(status: Status) -> Json:
    server, found = status.server, status.certificate
    return {
        'up': bool(server.workers),
        'since': up_since(server),
        'heard': server.heard and server.heard._asdict(),
        'workers': [each._asdict() for each in server.workers],
        'outages': [{'from': begin, 'to': end} for begin, end in server.outages],
        'certificate': found and {'end': end(found), 'issuer': issuer(found)},
        'notice': status.notice,
        'store': status.store,
        'last_24_hours': status.day._asdict(),
        'entries': status.counts,
    }


def lines(status: Status, options: Options, clock: Clock) -> list[str]:
    """What `users_app.py status` prints."""
    day = status.day
    facts = {
        'address': entry_files.authority(options),
        'server': server_said(status.server, clock),
        **_workers(status.server.workers),
        'certificate': _certificate(status, options, clock),
        'store': status.store,
        'last 24 h': f'{words.size(day.down)} down, {words.size(day.up)} up, '
        f'{words.plural(day.visits, "rendezvous", "rendezvous")}, {day.failures:,} failed',
        'entries': _counted(status.counts),
    }
    said = [f'{name + ":":13} {fact}' for name, fact in facts.items()]
    return said + textwrap.wrap(status.notice, COLUMNS, break_long_words=False)


def _workers(workers: Sequence[state.Worker]) -> dict[str, str]:
    if not workers:
        return {}
    of_node = {each.node: each.workers for each in workers}
    missing = sum(of_node.values()) - len(workers)
    count = f'{len(workers)} of {len(workers) + missing}' if missing > 0 else f'{len(workers)}'
    memory = words.size(sum(each.memory for each in workers))
    connections = sum(each.connections for each in workers)
    return {
        'workers': f'{count} on {words.plural(len(of_node), "machine")}, {memory} of memory',
        'connections': f'{connections:,} of {most(workers):,}',
    }


def server_said(server: Server, clock: Clock) -> str:
    """Whether it runs, and since when."""
    heard, since = server.heard, up_since(server)
    if server.workers and since:
        versions = ' and '.join(sorted({each.version for each in server.workers}))
        return f'up since {clock.since(since)}, version {versions}'
    if not heard:
        return 'it never ran: bin/run.sh starts it'
    what = 'stopped' if heard.stopped else 'down'
    where = f'it was process {heard.pid} on {printable(heard.node)}'
    return f'{what} since {clock.since(heard.at)}; {where}'


def troubles(
    server: Server, listed: Sequence[Listed], named: bool, seconds: float, clock: Clock
) -> Iterator[str]:
    """What is not well, a line each. `named`: these entries were chosen, and are not just all.

    Whoever is refused needs help at once. What is offline may be so for `seconds`. One that was
    never seen is told only if it is `named`: it may not be set up yet.
    """
    before = clock.present() - seconds
    if not server.workers:  # all are offline then
        if (server.heard.at if server.heard else 0) <= before:
            yield f'the rendezvous server is not running: {server_said(server, clock)}'
        return
    for shown, known in listed:
        since = (shown['created'] if known.state == NEVER else known.since) or 0
        is_late = known.state == OFFLINE or (named and known.state == NEVER)
        if known.state == REFUSED or (is_late and since <= before):
            reason = why.brief(known.why) if known.state == REFUSED and known.why else ''
            cells = shown['uuid'], listing.said(known, clock), reason, listing.label_of(shown)
            yield '  '.join(filter(None, cells))


def well(listed: Sequence[Listed]) -> str:
    """For a person who looks."""
    counts = Counter(each.known.state for each in listed)
    said = [f'{counts[each]:,} {each}' for each in STATES if counts[each]]
    return f'all is well: {", ".join(said) or "there are no entries yet"}'


def up_since(server: Server) -> float | None:
    """When the first of those that run began, in seconds since 1970."""
    return min((each.since for each in server.workers), default=None)


def most(workers: Sequence[state.Worker]) -> int:
    """Connections that all machines together take; the workers of each share them."""
    return sum(each.most for each in workers)


def _certificate(status: Status, options: Options, clock: Clock) -> str:
    found = status.certificate
    if not found:
        return 'see below' if options.key_file else 'none: something in front terminates TLS'
    at = end(found)
    left = words.length(at - clock.present()) if at > clock.present() else 'over'
    return f'until {clock.at(at)} ({left}), by {issuer(found)}'


def end(found: Found) -> float:
    """When the certificate ends, in seconds since 1970."""
    return found.leaf.not_valid_after_utc.timestamp()


def issuer(found: Found) -> str:
    """Who signed the certificate."""
    if found.is_ours:
        return 'an authority of its own'
    for kind in NameOID.ORGANIZATION_NAME, NameOID.COMMON_NAME:
        if names := found.leaf.issuer.get_attributes_for_oid(kind):
            return printable(names[0].value)
    return 'an unknown authority'


def _counted(counts: dict[str, int]) -> str:
    """`12: 5 online, 7 offline`."""
    said = ', '.join(f'{count:,} {each}' for each, count in counts.items() if count)
    return f'{sum(counts.values()):,}: {said}' if said else 'none yet'
