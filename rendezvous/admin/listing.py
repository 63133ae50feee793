"""The entries as the shell lists them: text for a terminal of 80 columns or more.

The label is the last cell of a line, so a long one, or one written from right to left, moves no
other cell.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple
from unicodedata import east_asian_width

from rendezvous.admin import actions, why, words
from rendezvous.admin import entry_files as files
from rendezvous.admin.words import Clock
from rendezvous.store import entry_json, state
from rendezvous.store.action_log import Action
from rendezvous.store.entries import Entries
from rendezvous.store.entry_json import Json, printable
from rendezvous.store.options import Options
from rendezvous.store.state import DISABLED, ONLINE, STATES, Known, Server

LABEL_COLUMNS = 100  # if the output is not a terminal
_INDENT = '    '
_HEADER = 'UUID', 'STATE', 'WAITING', 'OPEN', 'ADDRESS', 'WHY', 'LABEL'
_DONE_HEADER = 'WHEN', 'WHO', 'WHAT', 'UUID', 'LABEL'
_FACTS = 4  # cells of the first line where a row has two


class Listed(NamedTuple):
    """An entry, as `Entries.all` gives it, with its host name and URL; and what is known of it."""

    shown: Json
    known: Known


# Those of equal state, and so on, are sorted by name.
ORDERS: dict[str, Callable[[Listed], Any]] = {
    'name': lambda each: 0,
    'state': lambda each: STATES.index(each.known.state),
    'open': lambda each: -each.known.pipes,
    'waiting': lambda each: -each.known.waiting,
    'seen': lambda each: -_seen(each.known),
}


def everything(entries: Entries, options: Options, server: Server) -> list[Listed]:
    """All entries, sorted by name, as people do. Raises StoreDown."""
    every, name_of = entries.all(), actions.all_names(entries, options)
    known = state.known(entries, server, [shown['uuid'] for shown in every])
    return [
        _listed(shown, known.get(shown['uuid'], Known()), name_of.get(shown['uuid'], ''), options)
        for shown in every
    ]


def one(entries: Entries, options: Options, server: Server, entry: Json) -> Listed:
    """One of them; `entry` as Redis holds it, with its UUID. Raises StoreDown."""
    uuid = entry['uuid']
    shown = {'uuid': uuid, **entry_json.summary(entry)}
    known, name = state.known_of(entries, server, uuid), actions.name_of(entries, options, uuid)
    return _listed(shown, known, name, options)


def _listed(shown: Json, known: Known, name: str, options: Options) -> Listed:
    more = {'name': name, 'url': files.url(options, shown['uuid'], name)}
    return Listed(shown | more, known.disabled(shown['disabled']))


def beside(entries: Entries, listed: Iterable[Listed], clock: Clock) -> dict[str, str]:
    """What is wrong with those that are online, in a few words, by UUID. Raises StoreDown."""
    online = {each.shown['uuid']: each.known for each in listed if each.known.state == ONLINE}
    found = {
        uuid: why.beside(refusals, online[uuid], clock, used_up)
        for uuid, (refusals, used_up) in state.all_refusals(entries, online).items()
    }
    return {uuid: said for uuid, said in found.items() if said}


def for_programs(each: Listed) -> Json:
    """Everything that is known of an entry, but its secret."""
    found, reason = each.known._asdict(), each.known.why
    if reason:
        found['why'] = reason._asdict() | {'text': why.brief(reason)}
    return each.shown | found | {'disabled': each.known.state == DISABLED}


def table(listed: Sequence[Listed], columns: int | None, clock: Clock) -> list[str]:
    """A header and the entries: a line each, or up to three if one would be wider than `columns`.

    `columns`: None where the output is no terminal.
    """
    rows = [_HEADER, *(_row(each, clock) for each in listed)]
    if not any(reason for *_, reason, _ in rows[1:]):  # none is refused
        rows = [(*cells, label) for *cells, _, label in rows]
    widths = _widths(rows)
    before_label = sum(widths) + 2 * len(widths)
    if columns is None or before_label + len(_HEADER[-1]) <= columns:
        left = columns - before_label if columns else LABEL_COLUMNS
        return [line((*cells, fitted(label, left)), widths) for *cells, label in rows]
    return [each for row in rows for each in _block(row, widths, columns)]


def _block(row: Sequence[str], widths: list[int], columns: int) -> list[str]:
    """A row as two lines, or three: the last one says why."""
    facts, (address, *reason, label) = row[:_FACTS], row[_FACTS:]
    left = columns - len(_INDENT) - widths[_FACTS] - 2
    second = line([address, fitted(label, left)], widths[_FACTS:])
    more = [second, *reason] if row != _HEADER else [second]
    return [line(facts, widths), *(_INDENT + each for each in more if each)]


def _row(each: Listed, clock: Clock) -> tuple[str, ...]:
    shown, known = each
    reason = why.reason(known)
    label = f'{label_of(shown)}  {shown["url"]}' if shown['name'] else label_of(shown)
    counts = str(known.waiting), str(known.pipes)
    return shown['uuid'], said(known, clock), *counts, printable(known.address), reason, label


def done(actions: Sequence[Action], columns: int | None, clock: Clock) -> list[str]:
    """What was done, a line each. The beginning of a UUID is enough for each command."""
    rows = [_DONE_HEADER]
    for each in actions:
        more = '; '.join(filter(None, (each.label, each.detail)))
        rows.append((clock.at(each.when), each.who, each.what, each.uuid[:8], more))
    widths = _widths(rows)
    left = max(1, columns - sum(widths) - 2 * len(widths)) if columns else LABEL_COLUMNS
    return [line((*cells, fitted(more, left)), widths) for *cells, more in rows]


def said(known: Known, clock: Clock) -> str:
    """The state in words: `online since 09:12`, `refused 12 s ago`, `never seen`."""
    return words.lowered(why.said(known, clock))


def _seen(known: Known) -> float:
    return math.inf if known.state == ONLINE else known.since or 0


def ending(entry: Json, known: Known) -> str:
    """What a change of an entry ends."""
    label = label_of(entry_json.summary(entry))
    return f'{counted(known)}; they end within two seconds: {entry["uuid"]} {label}'.rstrip()


def counted(known: Known) -> str:
    return f'waiting registrations: {known.waiting}, open pipes: {known.pipes}'


def label_of(shown: Json) -> str:
    return fitted(', '.join(shown['labels']), LABEL_COLUMNS)


def fitted(text: str, columns: int) -> str:
    """As much of a text as fits. East Asian letters and emoji are two columns wide."""
    ends = list(accumulate(2 if east_asian_width(letter) in 'WF' else 1 for letter in text))
    if not ends or ends[-1] <= columns:
        return text
    return text[: sum(end < columns for end in ends)] + '\u2026'


def lined_up(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines, their cells in columns."""
    widths = _widths(rows)
    return [line(row, widths) for row in rows]


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    """The widths of all columns but the last one, which is not padded."""
    return [max(map(len, cells)) for cells in zip(*rows, strict=True)][:-1]


def line(cells: Iterable[str], widths: list[int]) -> str:
    """Cells between spaces; so many of the first are padded as there are widths."""
    *padded, last = cells
    return '  '.join([*map(str.ljust, padded, widths), last]).rstrip()
