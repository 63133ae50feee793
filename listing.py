"""What the shell shows of the entries: text that is good on a terminal of 80 columns.

Labels come last in a line: a long one, or one that is written from right to left, moves nothing.
"""

import time
from itertools import accumulate
from unicodedata import east_asian_width

from entry_json import printable
from live import Now

LABEL_COLUMNS = 100  # where no terminal says how many it has
_HEAD = 'UUID', 'STATE', 'WAITING', 'PIPES', 'LAST SEEN', 'ADDRESS', 'LABEL'
_UNITS = ('days', 86400), ('h', 3600), ('min', 60)


def state(entry: dict, now: Now) -> str:
    if entry['disabled']:
        return 'disabled'
    if now.waiting or now.pipes:
        return 'online'
    return 'never seen' if now.seen is None else 'offline'


def table(listed: list[dict], live: dict[str, Now], columns: int | None) -> list[str]:
    """A head and the entries, a line each; two where one is too long for so many columns."""
    rows = [_HEAD, *(_row(entry, live.get(entry['uuid'], Now())) for entry in listed)]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)][:-1]
    before_label = sum(widths) + 2 * len(widths)
    gap = '  '
    if columns and before_label + len(_HEAD[-1]) > columns:
        gap, before_label = '\n    ', 4 + widths[-1] + 2
    left = (columns or before_label + LABEL_COLUMNS) - before_label
    return [_line(row, widths, gap, left) for row in rows]


def _line(row: tuple[str, ...], widths: list[int], gap: str, left: int) -> str:
    *cells, address, label = row
    first = '  '.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=False))
    return f'{first}{gap}{address.ljust(widths[-1])}  {fitted(label, left)}'.rstrip()


def _row(entry: dict, now: Now) -> tuple[str, ...]:
    label, counts = ', '.join(entry['labels']), (str(now.waiting), str(now.pipes))
    return entry['uuid'], state(entry, now), *counts, ago(now.seen), now.address, label


def fitted(text: str, columns: int) -> str:
    """As much of a text as fits; letters of East Asia and pictures take two columns."""
    ends = list(accumulate(2 if east_asian_width(letter) in 'WF' else 1 for letter in text))
    if not ends or ends[-1] <= columns:
        return text
    return text[: sum(end < columns for end in ends)] + '\u2026'


def ago(at: float | None) -> str:
    """How long ago that was, in few letters."""
    if at is None:
        return '-'
    seconds = time.time() - at
    for unit, length in _UNITS:
        if seconds >= length:
            return f'{seconds // length:.0f} {unit} ago'
    return 'just now'


def moment(at: float) -> str:
    return time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(at))
