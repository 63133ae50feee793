"""The rendezvous server as a whole, as the top of the page says it, and whether all is well."""

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from rendezvous.admin import certificate, entry_files, listing, nodes, summary, why, words
from rendezvous.admin.listing import Listed
from rendezvous.admin.summary import Summary
from rendezvous.admin.words import Clock
from rendezvous.store import state
from rendezvous.store.entries import Entries
from rendezvous.store.entry_json import Json, printable
from rendezvous.store.options import Options
from rendezvous.store.state import DAY_SECONDS, NEVER, OFFLINE, REFUSED, STATES, Server

COLUMNS = 80  # of a text


class Status(NamedTuple):
    """What is known of the server."""

    server: Server
    summary: Summary
    notice: str  # what is or soon will be wrong with the certificate; '': nothing
    where: str  # the entries are
    counts: dict[str, int]  # of the entries, by state


def find(
    entries: Entries, options: Options, server: Server, listed: Sequence[Listed], clock: Clock
) -> Status:
    """Asks the store. Raises StoreDown."""
    now = clock.present()
    _, hours = state.past(entries, [state.ALL], now - DAY_SECONDS, now)[state.ALL]
    return Status(
        server,
        summary.of(options, server, hours, clock),
        certificate.notice(options),
        entries.where(),
        counted(listed),
    )


def counted(listed: Sequence[Listed]) -> dict[str, int]:
    """How many entries are in each state."""
    counts = Counter(each.known.state for each in listed)
    return {each: counts[each] for each in STATES}


def for_programs(status: Status) -> Json:
    """All of it."""
    server, found = status.server, status.summary
    return {
        'up': found.is_up,
        'since': found.since,
        'heard': found.heard and found.heard._asdict(),
        'workers': [each._asdict() for each in server.workers],
        'missing_workers': found.missing,
        'nodes': [each._asdict() for each in found.nodes],
        'gone_nodes': [each._asdict() for each in found.gone],
        'outages': [{'from': begin, 'to': end} for begin, end in server.outages],
        'certificate': found.certificate and found.certificate._asdict(),
        'notice': status.notice,
        'store': found.store,
        'last_24_hours': found.day._asdict(),
        'entries': status.counts,
    }


def lines(status: Status, options: Options, clock: Clock) -> list[str]:
    """What `users_app.py status` prints."""
    found, day = status.summary, status.summary.day
    workers = f'{found.workers} of {found.workers + found.missing}'
    facts = {
        'address': entry_files.authority(options),
        'server': server_said(found, clock),
        'workers': f'{workers} {found.where}, {words.size(found.memory)} of memory',
        'connections': f'{found.connections:,} of {found.most:,}',
        'certificate': _certificate(found, options, clock),
        'store': status.where,
        'last 24 h': f'{words.size(day.down)} down, {words.size(day.up)} up, '
        f'{words.plural(day.visits, "rendezvous", "rendezvous")}, {day.failures:,} failed',
        'entries': _said(status.counts) or 'none yet',
    }
    if not found.is_up:
        del facts['workers'], facts['connections']
    said = [f'{name + ":":13} {fact}' for name, fact in facts.items()]
    if found.has_nodes:
        for name, some in nodes.lines(found.nodes, found.gone, clock).items():
            wrapped = (textwrap.wrap(each, COLUMNS - 4) for each in some)
            said += [f'node {name}:', *(f'    {line}' for each in wrapped for line in each)]
    return said + textwrap.wrap(status.notice, COLUMNS, break_long_words=False)


def server_said(found: Summary, clock: Clock) -> str:
    """Whether it runs, and since when."""
    heard = found.heard
    if found.is_up and found.since:
        said = f'up since {clock.since(found.since)}, version {found.versions}'
        return f'{said}, {found.well}' if found.well else said
    if not heard:
        return 'it never ran: bin/run.sh starts it'
    what = 'stopped' if heard.stopped else 'down'
    where = f'it was process {heard.pid} on {printable(heard.node)}'
    return f'{what} since {clock.since(heard.at)}; {where}'


def _certificate(found: Summary, options: Options, clock: Clock) -> str:
    known = found.certificate
    if not known:
        return 'see below' if options.key_file else 'none: something in front terminates TLS'
    return f'until {clock.at(known.end)} ({known.left or "over"}), by {known.issuer}'


def _said(counts: dict[str, int]) -> str:
    """`5 online, 7 offline`."""
    return ', '.join(f'{count:,} {each}' for each, count in counts.items() if count)


def troubles(
    found: Summary,
    listed: Sequence[Listed],
    beside: Mapping[str, str],
    named: bool,
    seconds: float,
    clock: Clock,
) -> Iterator[str]:
    """What is not well, a line each. `beside`: what is wrong with those that are online, by UUID.
    `named`: these entries were chosen, and are not just all.

    Whoever is refused needs help at once. What is offline may be so for `seconds`. One that was
    never seen is told only if it is `named`: it may not be set up yet.
    """
    before = clock.present() - seconds
    if not found.is_up:  # all are offline then
        if (found.heard.at if found.heard else 0) <= before:
            yield f'the rendezvous server is not running: {server_said(found, clock)}'
        return
    yield from nodes.troubles(found.nodes, found.gone, clock)
    for shown, known in listed:
        since = (shown['created'] if known.state == NEVER else known.since) or 0
        is_late = known.state == OFFLINE or (named and known.state == NEVER)
        reason = beside.get(shown['uuid'], '')
        if known.state == REFUSED or reason or (is_late and since <= before):
            reason = why.reason(known) or reason
            cells = shown['uuid'], listing.said(known, clock), reason, listing.label_of(shown)
            yield '  '.join(filter(None, cells))


def well(listed: Sequence[Listed]) -> str:
    """For a person who looks."""
    return f'all is well: {_said(counted(listed)) or "there are no entries yet"}'
