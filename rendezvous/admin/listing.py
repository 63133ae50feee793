"""The entries as the shell shows them: text for a terminal of 80 columns or more.

The label is the last cell of a line, so a long one, or one written from right to left, moves no
other cell.
"""

import time
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width

from rendezvous.admin import entry_files as files
from rendezvous.admin import pack, words
from rendezvous.store import entry_json
from rendezvous.store.entry_json import printable
from rendezvous.store.options import Options
from rendezvous.store.presence import Now, RendezvousRow

LABEL_COLUMNS = 100  # if the output is not a terminal
_INDENT = '    '
_NO_FILES = 'not here: download them from the page; rekey makes new ones with a new secret'
_HEADER = 'UUID', 'STATE', 'WAITING', 'PIPES', 'LAST SEEN', 'ADDRESS', 'LABEL'
_RENDEZVOUS_HEADER = 'BEGAN', 'LASTED', 'UP', 'DOWN', 'ADDRESS', 'END'
_UNITS = ('GB', 10**9), ('MB', 10**6), ('kB', 10**3)


def state(shown: dict[str, Any], now: Now) -> str:
    """disabled, online, offline or never seen; `shown` is an entry as `Entries.all` gives it."""
    if shown['disabled']:
        return 'disabled'
    if now.waiting or now.pipes:
        return 'online'
    return 'never seen' if now.seen is None else 'offline'


def with_url(shown: dict[str, Any], name: str, options: Options) -> dict[str, Any]:
    """Adds the host name, '' where it has none but its UUID, and where mobile clients go."""
    return shown | {'name': name, 'url': files.url(options, shown['uuid'], name)}


def known(shown: dict[str, Any], now: Now) -> dict[str, Any]:
    """Everything that is known of an entry, for programs."""
    return shown | {'state': state(shown, now)} | now._asdict()


def table(listed: list[tuple[dict[str, Any], Now]], columns: int | None) -> list[str]:
    """A header and the entries, a line each, or two if one would be wider than `columns`."""
    rows = [_HEADER, *(_row(*each) for each in listed)]
    widths = _widths(rows)
    before_label = sum(widths) + 2 * len(widths)
    one_line = columns is None or before_label + len(_HEADER[-1]) <= columns
    if not one_line:
        before_label = len(_INDENT) + widths[-1] + 2
    left = columns - before_label if columns else LABEL_COLUMNS
    lines = []
    for *cells, address, label in rows:
        rest = _line([address, fitted(label, left)], widths[-1:])
        if one_line:
            lines.append(_line([*cells, rest], widths))
        else:
            lines += [_line(cells, widths), _INDENT + rest]
    return [line for line in lines if line.strip()]  # without address and label, `rest` is empty


def _row(entry: dict[str, Any], now: Now) -> tuple[str, ...]:
    counts, address = (str(now.waiting), str(now.pipes)), printable(now.address)
    seen = '-' if now.seen is None else words.ago(now.seen)
    label = f'{_label(entry)}  {entry["url"]}' if entry['name'] else _label(entry)
    return entry['uuid'], state(entry, now), *counts, seen, address, label


def about(entry: dict[str, Any], now: Now, options: Options, name: str, secret: bool) -> list[str]:
    """Everything about an entry, and the commands for its two ends. Raises Mistake."""
    uuid, shown = entry['uuid'], entry_json.summary(entry)
    path = files.FILES / uuid
    has_files, is_sound = path.with_suffix('.json').exists(), entry_json.is_sound(entry)
    facts = {
        'UUID': uuid,
        'label': _label(shown),
        'state': f'{state(shown, now)}; {counted(now)}',
        'last seen': f'{_minute(now.seen)} from {printable(now.address)}' if now.seen else '-',
        'created': _minute(shown['created']) if shown['created'] else '-',
        'codes': f'{entry_json.digits(entry)} digits' if is_sound else 'none: rekey makes a secret',
        'files': f'{path}.json and .js' if has_files else _NO_FILES,
    }
    if options.names_domain:
        facts['host name'] = name or '-'
    if secret:
        parameters = entry.get('authParams')
        base32 = parameters.get('base32', '') if isinstance(parameters, dict) else ''
        facts |= {'secret': printable(base32), 'URL': printable(entry.get('authURL', ''))}
    return [
        *(f'{name + ":":10} {fact}'.rstrip() for name, fact in facts.items()),
        *_commands(uuid, pack.file_name(shown | {'uuid': [uuid]}), options, name),
    ]


def _commands(uuid: str, file: str, options: Options, name: str) -> list[str]:
    url, has_name = files.url(options, uuid, name), options.names_domain
    is_self_signed = 'ca' in files.how_to_reach(options)
    trusted = f'--cacert {Path(options.crt_file).name} ' if is_self_signed else ''
    return [
        'here, to make one file for the hidden machine:',
        f'    .venv/bin/python users_app.py pack {uuid}',
        'on the hidden machine, with that file, for the HTTP server there:',
        f'    python3 {file} 127.0.0.1:8000',
        f'on the phone{"" if has_name else ", with the UUID as the user name and any password"}:',
        *(f'    {each}' for each in dict.fromkeys([url, files.url(options, uuid)])),
        f'    curl {trusted}{"" if has_name else f"--digest -u {uuid}:x "}{url}',
    ]


def history(rendezvous: list[RendezvousRow]) -> list[str]:
    """The last rendezvous, a line each, under a header."""
    rows: list[tuple[str, ...]] = [_RENDEZVOUS_HEADER]
    for each in rendezvous:
        octets = _octets(each['sent']), _octets(each['received'])
        address, how = printable(each['address']), printable(each['how'])
        rows.append((_minute(each['at']), words.lasting(each['seconds']), *octets, address, how))
    widths = _widths(rows)
    return [_line(row, widths) for row in rows] if rendezvous else []


def ending(entry: dict[str, Any], now: Now) -> str:
    """What a change of an entry ends."""
    label = _label(entry_json.summary(entry))
    return f'{counted(now)}; they end within two seconds: {entry["uuid"]} {label}'.rstrip()


def counted(now: Now) -> str:
    return f'waiting registrations: {now.waiting}, open pipes: {now.pipes}'


def _label(shown: dict[str, Any]) -> str:
    return fitted(', '.join(shown['labels']), LABEL_COLUMNS)


def fitted(text: str, columns: int) -> str:
    """As much of a text as fits. East Asian letters and emoji are two columns wide."""
    ends = list(accumulate(2 if east_asian_width(letter) in 'WF' else 1 for letter in text))
    if not ends or ends[-1] <= columns:
        return text
    return text[: sum(end < columns for end in ends)] + '\u2026'


def _widths(rows: Sequence[tuple[str, ...]]) -> list[int]:
    """The widths of all columns but the last one, which is not padded."""
    return [max(map(len, cells)) for cells in zip(*rows, strict=True)][:-1]


def _line(cells: Iterable[str], widths: list[int]) -> str:
    *padded, last = cells
    return '  '.join([*map(str.ljust, padded, widths), last]).rstrip()


def _octets(count: int) -> str:
    """In the largest unit of which there is at least one."""
    for unit, size in _UNITS:
        if count >= size:
            return f'{count // size} {unit}'
    return f'{count} B'


def _minute(at: float) -> str:
    return time.strftime('%Y-%m-%d %H:%M', time.localtime(at))
