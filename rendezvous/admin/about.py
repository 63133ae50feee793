"""All about one entry, as `users_app.py show` prints it, and as JSON for programs."""

import shlex
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rendezvous.admin import entry_files as files
from rendezvous.admin import listing, nodes, pack, pictures, visits, why, words
from rendezvous.admin.entry_view import WEEK_DAYS
from rendezvous.admin.pictures import Span
from rendezvous.admin.why import Advice
from rendezvous.admin.words import HOUR, Clock
from rendezvous.store import entry_json, questions, state
from rendezvous.store.entries import Entries
from rendezvous.store.entry_json import Json, printable
from rendezvous.store.options import Options
from rendezvous.store.questions import OpenPipe
from rendezvous.store.state import (
    Change,
    Hour,
    Known,
    Refusals,
    Rendezvous,
    Server,
)

COLUMNS = 80  # of a text
_BEFORE = ' ' * len('first seen: ')  # before each fact
_NO_FILES = 'not here: download them from the page; rekey makes new ones with a new secret'
_REFUSED_HEADER = 'WHY', 'TIMES', 'LAST', 'ADDRESS'
_OPEN_HEADER = 'SINCE', 'UP', 'DOWN', 'ADDRESS'
_PAST_HEADER = 'BEGAN', 'TOOK', 'UP', 'DOWN', 'ADDRESS', 'END'


class About(NamedTuple):
    """What is known of an entry and of its hidden server."""

    entry: Json  # with its secret
    shown: Json  # without it, as `Entries.all` gives it, with its host name and URL
    known: Known
    nodes: str  # see nodes.where
    refusals: list[Refusals]  # within a day, the newest first
    used_up: float | None  # when strangers used up their wrong codes for it
    advice: list[Advice]  # what is wrong, and what to do
    pipes: list[OpenPipe]
    changes: list[Change]  # within a week and the last one before it, the oldest first
    start: float  # of the week
    hours: list[Hour]  # those of the week
    week: list[Span]
    history: list[Rendezvous]  # the newest first


def find(entries: Entries, options: Options, server: Server, entry: Json, clock: Clock) -> About:
    """Asks the store and the workers. A week is six days and today, as on the page.

    Raises StoreDown.
    """
    uuid, now = entry['uuid'], clock.present()
    shown, known = listing.one(entries, options, server, entry)
    start = clock.midnight(now, 1 - WEEK_DAYS)
    changes, hours = state.past(entries, [uuid], start, now)[uuid]
    changes = pictures.with_present(changes, known)
    refusals, used_up = state.refusals(entries, uuid), entries.used_up(uuid)
    file = pack.file_of(shown) if server.workers else ''  # else the server is the reason
    return About(
        entry,
        shown,
        known,
        nodes.where(entries, server, uuid),
        refusals,
        used_up,
        why.advice(refusals, known, clock, used_up, file),
        questions.open_pipes(entries, server, uuid),
        changes,
        start,
        hours,
        pictures.spans(changes, start, now, server.down_since, server.outages),
        state.history(entries, uuid),
    )


def for_programs(about: About, secret: bool) -> Json:
    """All that is known, and the secret only if it is asked for."""
    found = listing.for_programs(listing.Listed(about.shown, about.known)) | {
        'digits': entry_json.digits(about.entry),
        'usable': entry_json.is_sound(about.entry),
        'wrong_codes_used_up': about.used_up,
        'refusals': [
            each._asdict() | {'why': each.why._asdict() | {'text': why.brief(each.why)}}
            for each in about.refusals
        ],
        'open_pipes': [each._asdict() for each in about.pipes],
        'changes': [each._asdict() for each in about.changes],
        'hours': [
            {'at': number * HOUR} | each._asdict()
            for number, each in enumerate(about.hours, int(about.start // HOUR))
        ],
        'rendezvous': [each._asdict() for each in about.history],
    }
    return found | _secret(about.entry) if secret else found


def lines(about: About, options: Options, secret: bool, clock: Clock) -> Iterator[str]:
    """The parts of it, with an empty line between two. Raises Mistake."""
    parts = [
        _facts(about, options, secret, clock),
        _why(about, clock),
        _refusals(about.refusals, clock),
        _open(about.pipes, clock),
        _week(about),
        _commands(about, options),
        _past(about.history, clock),
    ]
    for number, part in enumerate(filter(None, parts)):
        yield from ['', *part] if number else part


def _facts(about: About, options: Options, secret: bool, clock: Clock) -> list[str]:
    entry, shown, known, uuid = about.entry, about.shown, about.known, about.shown['uuid']
    path, is_sound = files.FILES / uuid, entry_json.is_sound(entry)
    facts = {
        'UUID': uuid,
        'label': listing.label_of(shown),
        'note': _noted(shown['note']),
        'state': f'{listing.said(known, clock)}; {listing.counted(known)}',
        'address': printable(known.address) or '-',
        'nodes': about.nodes,
        'first seen': clock.at(known.first) if known.first else '-',
        'created': clock.at(shown['created']) if shown['created'] else '-',
        'codes': f'{entry_json.digits(entry)} digits' if is_sound else 'none: rekey makes a secret',
        'files': f'{path}.json and .js' if path.with_suffix('.json').exists() else _NO_FILES,
    }
    for name in 'note', 'nodes':
        if not facts[name]:
            del facts[name]
    if options.names_domain:
        facts['host name'] = shown['name'] or '-'
    if secret:
        facts |= _secret(entry)
    return [f'{name + ":":{len(_BEFORE) - 1}} {fact}'.rstrip() for name, fact in facts.items()]


def _noted(note: str) -> str:
    """Its lines below each other, and none too long."""
    lines = [textwrap.wrap(each, COLUMNS - len(_BEFORE)) for each in note.splitlines()]
    return f'\n{_BEFORE}'.join(part for each in lines for part in each)


def _secret(entry: Json) -> dict[str, str]:
    parameters = entry.get('authParams')
    base32 = parameters.get('base32', '') if isinstance(parameters, dict) else ''
    return {'secret': printable(base32), 'URL': printable(entry.get('authURL', ''))}


def _why(about: About, clock: Clock) -> list[str]:
    wrapped: list[str] = []
    for each in why.lines(about.advice, clock):
        is_command = each.startswith(' ')
        wrapped += [each] if is_command else textwrap.wrap(each, COLUMNS - 4)
    return ['what is wrong, and what to do:', *_indented(wrapped)] if wrapped else []


def _refusals(rows: list[Refusals], clock: Clock) -> list[str]:
    cells = [
        (why.brief(row.why), f'{row.count:,}', clock.ago(row.last), row.address)
        for row in filter(why.is_refusal, rows)
    ]
    return _titled('refused in the last 24 hours:', _REFUSED_HEADER, cells)


def _open(rows: list[OpenPipe], clock: Clock) -> list[str]:
    cells = [
        (clock.since(row.at), words.size(row.sent), words.size(row.received), row.address)
        for row in rows
    ]
    return _titled('open connections:', _OPEN_HEADER, cells)


def _past(rows: list[Rendezvous], clock: Clock) -> list[str]:
    cells = [
        (
            clock.at(row.at),
            words.lasting(row.seconds),
            words.size(row.sent),
            words.size(row.received),
            row.address,
            visits.ended(row.how),
        )
        for row in visits.by_beginning(rows)
    ]
    return _titled('the last connections:', _PAST_HEADER, cells)


def _week(about: About) -> list[str]:
    """How long of it the hidden server was online, and what went through."""
    total = visits.total(about.hours)
    said = [pictures.week_words(about.week, about.week[-1].end)]
    if total.visits:
        traffic = f'{words.size(total.down)} down, {words.size(total.up)} up'
        said.append(f'{words.plural(total.visits, "rendezvous", "rendezvous")}: {traffic}')
    if total.failures:
        said.append(f'{words.plural(total.failures, "mobile client")} failed')
    return ['the last 7 days:', *_indented(filter(None, said))] if any(said) else []


def _commands(about: About, options: Options) -> list[str]:
    uuid, has_name = about.shown['uuid'], options.names_domain
    url = about.shown['url']
    file = shlex.quote(pack.file_of(about.shown))
    is_self_signed = 'ca' in files.how_to_reach(options)
    trusted = f'--cacert {Path(options.crt_file).name} ' if is_self_signed else ''
    return [
        'here, to make one file for the hidden machine:',
        f'    .venv/bin/python users_app.py pack {uuid}',
        'on the hidden machine, with that file, for the HTTP server there:',
        f'    python3 {file} 127.0.0.1:8000',
        f'on the phone{"" if has_name else ", with the UUID as the user name and any password"}:',
        *_indented(dict.fromkeys([url, files.url(options, uuid)])),
        f'    curl {trusted}{"" if has_name else f"--digest -u {uuid}:x "}{url}',
    ]


def _titled(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [title, *_indented(listing.lined_up([header, *rows]))] if rows else []


def _indented(some: Iterable[str]) -> list[str]:
    return [f'    {each}' for each in some]
