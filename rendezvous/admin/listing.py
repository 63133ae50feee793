"""What the shell shows of the entries: text that is good on a terminal of 80 columns.

Labels come last in a line: a long one, or one that is written from right to left, moves nothing.
"""

import time
from itertools import accumulate
from pathlib import Path
from unicodedata import east_asian_width

from rendezvous.admin import entry_files as files
from rendezvous.admin import words
from rendezvous.store import entry_json
from rendezvous.store.entry_json import printable
from rendezvous.store.options import Options
from rendezvous.store.presence import Now, RendezvousRow

LABEL_COLUMNS = 100  # where no terminal says how many it has
_HEAD = 'UUID', 'STATE', 'WAITING', 'PIPES', 'LAST SEEN', 'ADDRESS', 'LABEL'
_RENDEZVOUS_HEAD = 'BEGAN', 'LASTED', 'UP', 'DOWN', 'ADDRESS', 'END'
_OCTETS = ('GB', 10**9), ('MB', 10**6), ('kB', 10**3)


def state(shown: dict, now: Now) -> str:
    """Of an entry as `Entries.all` shows it: disabled, online, offline or never seen."""
    if shown['disabled']:
        return 'disabled'
    if now.waiting or now.pipes:
        return 'online'
    return 'never seen' if now.seen is None else 'offline'


def known(shown: dict, now: Now) -> dict:
    """All that is known of an entry, for programs."""
    return shown | {'state': state(shown, now)} | now._asdict()


def table(listed: list[dict], live: dict[str, Now], columns: int | None) -> list[str]:
    """A head and the entries, a line each; two where one is too long for so many columns."""
    rows = [_HEAD, *(_row(entry, live.get(entry['uuid'], Now())) for entry in listed)]
    widths, indent = _widths(rows), '    '
    before_label = sum(widths) + 2 * len(widths)
    wide = columns is None or before_label + len(_HEAD[-1]) <= columns
    if not wide:
        before_label = len(indent) + widths[-1] + 2
    left = columns - before_label if columns else LABEL_COLUMNS
    lines = []
    for *cells, address, label in rows:
        rest = _line([address, fitted(label, left)], widths[-1:])
        lines += [_line([*cells, rest], widths)] if wide else [_line(cells, widths), indent + rest]
    return [line for line in lines if line.strip()]  # some have neither address nor label


def _row(entry: dict, now: Now) -> tuple[str, ...]:
    counts, address = (str(now.waiting), str(now.pipes)), printable(now.address)
    seen = '-' if now.seen is None else words.ago(now.seen)
    return entry['uuid'], state(entry, now), *counts, seen, address, _label(entry)


def about(entry: dict, now: Now, options: Options, secret: bool) -> list[str]:
    """What there is about an entry, and the commands for its two ends. Raises Mistake."""
    uuid, shown = entry['uuid'], entry_json.summary(entry)
    path = files.FILES / uuid
    there = path.with_suffix('.json').exists()
    facts = {
        'UUID': uuid,
        'label': _label(shown),
        'state': f'{state(shown, now)}; {counted(now)}',
        'last seen': f'{_moment(now.seen)} from {printable(now.address)}' if now.seen else '-',
        'made': _moment(shown['created']) if shown['created'] else '-',
        'codes': f'of {entry_json.digits(entry)} digits' if entry_json.is_sound(entry) else 'none',
        'files': f'{path}.json and .js' if there else 'none here: rekey makes new ones',
    }
    if secret:
        parameters = entry.get('authParams')
        base32 = parameters.get('base32', '') if isinstance(parameters, dict) else ''
        facts |= {'secret': printable(base32), 'URL': printable(entry.get('authURL', ''))}
    return [
        *(f'{name + ":":10} {fact}'.rstrip() for name, fact in facts.items()),
        *_use(uuid, options),
    ]


def _use(uuid: str, options: Options) -> list[str]:
    server = files.how_to_reach(options)
    url = f'https://{files.authority(options)}/'
    trusted = f'--cacert {Path(options.crt_file).name} ' if 'ca' in server else ''
    return [
        'on the hidden machine, for the HTTP server there:',
        f'    .venv/bin/python hidden.py {uuid}.json 127.0.0.1:8000',
        'on the phone, with that UUID as the user name and any password:',
        f'    {url}',
        f'    curl {trusted}--digest -u {uuid}:x {url}',
    ]


def history(rendezvous: list[RendezvousRow]) -> list[str]:
    """The last rendezvous, a line each, under a head."""
    rows = [_RENDEZVOUS_HEAD]
    for each in rendezvous:
        octets = _octets(each['sent']), _octets(each['received'])
        address, how = printable(each['address']), printable(each['how'])
        rows.append((_moment(each['at']), f'{each["seconds"]:.0f} s', *octets, address, how))
    widths = _widths(rows)
    return [_line(row, widths) for row in rows] if rendezvous else []


def ending(entry: dict, now: Now) -> str:
    """What ends with a change of an entry: the servers hear of it at once."""
    label = _label(entry_json.summary(entry))
    return f'{counted(now)}; they end within two seconds: {entry["uuid"]} {label}'.rstrip()


def counted(now: Now) -> str:
    return f'registrations that wait: {now.waiting}, open pipes: {now.pipes}'


def _label(shown: dict) -> str:
    return fitted(', '.join(shown['labels']), LABEL_COLUMNS)


def fitted(text: str, columns: int) -> str:
    """As much of a text as fits; letters of East Asia and pictures take two columns."""
    ends = list(accumulate(2 if east_asian_width(letter) in 'WF' else 1 for letter in text))
    if not ends or ends[-1] <= columns:
        return text
    return text[: sum(end < columns for end in ends)] + '\u2026'


def _widths(rows: list[tuple[str, ...]]) -> list[int]:
    """Of all columns but the last, which needs none."""
    return [max(map(len, cells)) for cells in zip(*rows, strict=True)][:-1]


def _line(cells, widths: list[int]) -> str:
    *padded, last = cells
    return '  '.join([*map(str.ljust, padded, widths), last]).rstrip()


def _octets(count: int) -> str:
    """A whole number of the largest unit that fits."""
    for unit, size in _OCTETS:
        if count >= size:
            return f'{count // size} {unit}'
    return f'{count} B'


def _moment(at: float) -> str:
    return time.strftime('%Y-%m-%d %H:%M', time.localtime(at))
