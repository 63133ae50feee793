"""The figures of a run as tables, JSON and a picture.

A figure is the median of its rounds by the median of HAProxy's in the same run; in brackets are the
least and the most of the rounds, by the same median. HAProxy's own figures are in the footnotes.
"""

import json
import os
import platform
import ssl
import statistics
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.work import PIECES, Figures

BASE = 'HAProxy'
OURS, TWO = 'this server', 'this server, 2 workers'
Found = Mapping[str, Mapping[str, list[Figures]]]
DASH, FAILED = '–', '†'  # noqa: RUF001
BOTH = 'TLS, TLS'  # what protects the mobile client's leg, and the tunnel's
# The columns of the small table: a piece of work, a figure of it, and what it is
COLUMNS = (
    ('b', 'cpu', 'new connection: CPU'),
    ('c64', 'cpu', 'small request: CPU'),
    ('c64', 'rate', 'small requests: rate'),
    ('down', 'cpu', '1 GB down: CPU'),
    ('up', 'cpu', '1 GB up: CPU'),
    ('down', 'rate', '1 GB down: speed'),
    ('f', 'cpu', 'WebSocket message: CPU'),
)
LONG = {
    'cpu': 'CPU of the server',
    'hidden': 'CPU of the hidden part',
    'rate': 'rate',
    'p50': 'p50',
    'p99': 'p99',
    'p99.9': 'p99.9',
    'page': 'page',
    'seconds': 'seconds',
}
ABSOLUTE = {'seconds'}


@dataclass
class Peers:
    """What the report knows of those that took part."""

    kinds: dict[str, str]
    legs: dict[str, str]
    reasons: dict[str, dict[str, str]]  # piece of work, peer: why there is a dash


def median(found: Found, piece: str, peer: str, name: str) -> float | None:
    values = [each[name] for each in found.get(piece, {}).get(peer, []) if name in each]
    return statistics.median(values) if values else None


def quotient(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def ratio(found: Found, piece: str, peer: str, name: str) -> float | None:
    return quotient(median(found, piece, peer, name), base_of(found, piece, name))


def base_of(found: Found, piece: str, name: str) -> float | None:
    if name in ABSOLUTE:
        return 1.0
    return median(found, piece, BASE, 'cpu' if name == 'hidden' else name)


def with_spread(found: Found, piece: str, peer: str, name: str) -> str:
    values = [each[name] for each in found.get(piece, {}).get(peer, []) if name in each]
    base = base_of(found, piece, name)
    if not values or not base or (name == 'hidden' and not any(values)):
        return DASH
    middle, least, most = (f(values) / base for f in (statistics.median, min, max))
    return f'{middle:.2f} ({least:.2f} to {most:.2f})'


def failures(found: Found, piece: str, peer: str) -> int:
    return int(sum(each.get('failed', 0) for each in found.get(piece, {}).get(peer, [])))


# The tables


def table(rows: Sequence[Sequence[str]]) -> str:
    lines = ['| ' + ' | '.join(row) + ' |' for row in rows]
    lines.insert(1, '| --- |' + ' ---: |' * (len(rows[0]) - 1))
    return '\n'.join(lines) + '\n'


def label(peer: str, peers: Peers) -> str:
    """Its name, and what its two legs have where it is not TLS and TLS."""
    legs = peers.legs.get(peer, BOTH)
    name = f'**{peer}**' if peer == OURS else peer
    return name if legs == BOTH else f'{name} ({legs})'


def cell_of(found: Found, piece: str, peer: str, name: str) -> str:
    value = ratio(found, piece, peer, name)
    mark = FAILED if failures(found, piece, peer) else ''
    return DASH if value is None else f'{value:.2f}{mark}'


def small(found: Found, peers: Peers) -> str:
    """The table of the README: a row a peer."""
    rows = [['', *(title for _, _, title in COLUMNS), 'back after a kill', 'failed of a page']]
    for peer in peers.kinds:
        row = [label(peer, peers)]
        row += [cell_of(found, piece, peer, name) for piece, name, _ in COLUMNS]
        back = median(found, 'g', peer, 'seconds')
        row.append(DASH if back is None else f'{back:.2f} s')
        did = found.get('h', {}).get(peer)
        row.append(f'{failures(found, "h", peer)} of {60 * len(did)}' if did else DASH)
        rows.append(row)
    return table(rows)


def long(found: Found, peers: Peers) -> Iterator[str]:
    """A table for each piece of work, with spread and footnotes."""
    for key, piece in PIECES.items():
        by_peer, reasons = found.get(key, {}), peers.reasons.get(key, {})
        if not by_peer and not reasons:
            continue
        names = [name for name in LONG if any(name in each[0] for each in by_peer.values())]
        rows = [['', *(LONG[name] for name in names), 'failed', 'cores of a load']]
        notes = []
        for peer in peers.kinds:
            if figures := by_peer.get(peer):
                cells = [with_spread(found, key, peer, name) for name in names]
                share = max(each.get('load', 0) for each in figures)
                rows.append([peer, *cells, str(failures(found, key, peer)), f'{share:.2f}'])
            if why := reasons.get(peer):
                notes.append(f'{peer}: {DASH}, {why}')
        if BASE in by_peer:
            own = ', '.join(
                f'{LONG[name]} {own_figure(found, key, name)}' for name in names if name != 'hidden'
            )
            notes.insert(0, f'{BASE}: {own}')
        heading = f'### ({piece.letter}) {piece.what}\n\n'
        yield heading + table(rows) + '\n' + '\n'.join(f'- {note}.' for note in notes) + '\n'


def own_figure(found: Found, key: str, name: str) -> str:
    value = median(found, key, BASE, name)
    if name == 'cpu':
        return f'{value:.2f} {PIECES[key].unit}'
    unit = {'rate': 'GB/s' if PIECES[key].letter == 'd' else '/s', 'seconds': 's'}.get(name, 'ms')
    return f'{value:.2f} {unit}'


def alone(found: Found) -> str:
    """(e), and (i): what two workers on two cores do, by what one does on one."""
    rows = [['', 'figure', 'median (least to most)']]
    for what, figures in found.get('e', {}).items():
        for name in (name for name in UNITS if name in figures[0]):
            values = [each[name] for each in figures]
            middle = f'{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})'
            rows.append([f'(e) {what}', UNITS[name], middle])
    for key in ALONE if 'i' in found else ():
        for name in ('rate', 'cpu'):
            rows.append(
                [
                    f'(i) {PIECES[key].what}',
                    f'{LONG[name]}, times',
                    f'{gain(found, key, name) or 0:.2f}',
                ]
            )
    return table(rows) if rows[1:] else ''


def gain(found: Found, key: str, name: str) -> float | None:
    """How many times as much two workers have as one."""
    two, one = (median(found, 'i', f'{key}, {count} workers', name) for count in (2, 1))
    return quotient(two, one)


UNITS = {
    'all': 'MB in all',
    'each': 'KB each',
    'kept': 'MB kept',
    'idle': 'ms of CPU a second',
    'cpu': 'ms of CPU each',
}
ALONE = 'b', 'c64', 'eight'


# The bars


@dataclass
class Bound:
    """What has to be reached."""

    what: str
    figure: float | None
    limit: float
    at_least: bool = False

    def __str__(self) -> str:
        if self.figure is None:
            return f'not measured  {self.what}'
        figure = round(self.figure, 2)
        kept = figure >= self.limit if self.at_least else figure <= self.limit
        sign = '>=' if self.at_least else '<='
        how = 'kept    ' if kept else 'NOT KEPT'
        return f'{how}  {self.what}: {figure:.2f} ({sign} {self.limit:g})'


def bounds(found: Found, peers: Peers) -> Iterator[Bound]:
    def of(piece: str, name: str = 'cpu', peer: str = OURS) -> float | None:
        return ratio(found, piece, peer, name)

    yield Bound('(b) CPU of a rendezvous, HAProxy is 1', of('b'), 1.4)
    for key in ('down', 'up', 'eight'):
        what = PIECES[key].what
        yield Bound(f'(d) CPU of {what}, HAProxy is 1', of(key), 1)
        other = median(found, key, 'stunnel, twice', 'cpu')
        figure = quotient(median(found, key, OURS, 'cpu'), other)
        yield Bound(f'(d) CPU of {what}, stunnel is 1', figure, 1)
    yield Bound('(d) speed of 1 GB down, HAProxy is 1', of('down', 'rate'), 1, at_least=True)
    tunnels = [name for name, kind in peers.kinds.items() if kind == 'tunnel']
    for key in ('c1', 'c4', 'c64'):
        yield Bound(f'(c) CPU of {PIECES[key].what}, HAProxy is 1', of(key), 1.3)
        yield from ahead(found, tunnels, key, 'rate', 1.5)
    encrypted = [name for name in tunnels if peers.legs.get(name, '').startswith('TLS')]
    for group in (tunnels, encrypted, ['stunnel, twice']):
        for key in PIECES:
            for what in ('cpu', 'rate', 'seconds'):
                yield from ahead(found, group, key, what, 1)
    yield from bounds_alone(found)


def ahead(found: Found, group: Sequence[str], key: str, name: str, limit: float) -> Iterator[Bound]:
    """Beside the best of these peers, of those without a failure."""
    theirs = [
        (median(found, key, peer, name), peer) for peer in group if not failures(found, key, peer)
    ]
    there = [(value, peer) for value, peer in theirs if value is not None]
    if there:
        at_least = name == 'rate'
        value, peer = max(there) if at_least else min(there)
        figure = quotient(median(found, key, OURS, name), value)
        what = f'({PIECES[key].letter}) {LONG[name]}, {PIECES[key].what}: {peer} is 1'
        yield Bound(what, figure, limit, at_least)


def bounds_alone(found: Found) -> Iterator[Bound]:
    def of(key: str, what: str, name: str) -> float | None:
        return median(found, key, what, name)

    for who in ('1,000 wait', '5,000 wait'):
        yield Bound(f'(e) KB a waiting registration, {who}', of('e', who, 'each'), 20)
    figure = quotient(of('e', 'beside 5,000', 'cpu'), of('e', 'beside 10', 'cpu'))
    yield Bound('(e) a rendezvous beside 5,000 that wait, beside 10 is 1', figure, 1.05)
    yield Bound('(e) MB kept after 3,000 have left', of('e', '3,000 have left', 'kept'), 20)
    for peer in (OURS, TWO):
        yield Bound(f'(g) seconds, {peer}', of('g', peer, 'seconds'), 0.3)
        failed = failures(found, 'h', peer) if found.get('h', {}).get(peer) else None
        yield Bound(f'(h) requests of pages that failed, {peer}', failed, 0)
    for key in ALONE:
        what = f'(i) {PIECES[key].what}: rate of two workers on two cores, one on one is 1'
        yield Bound(what, gain(found, key, 'rate'), 1.6, at_least=True)


# What is written


def machine() -> str:
    cpu = Path('/proc/cpuinfo').read_text().partition('model name')[2]
    cpu = cpu.partition('\n')[0].strip(': \t')
    cores = len(os.sched_getaffinity(0))
    haproxy = first_line(['haproxy', '-v']).split(' ')[2]
    return (
        f'{cores} cores of {cpu}, Linux {platform.release()}, '
        f'Python {platform.python_version()}, {ssl.OPENSSL_VERSION.rsplit(" ", 3)[0]}, HAProxy '
        f'{haproxy}, load {os.getloadavg()[1]:.1f}'
    )


def first_line(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout.partition('\n')[0]


def note(found: Found, rounds: int) -> str:
    own = [
        f'{title} {own_figure(found, piece, name)}'
        for piece, name, title in COLUMNS
        if median(found, piece, BASE, name) is not None
    ]
    day, share = time.strftime('%Y-%m-%d'), busiest(found)
    return (
        f'HAProxy is 1.00: {"; ".join(own)}. Medians of {rounds} rounds that took turns, {day}, on '
        f'{machine()}. CPU is that of the server alone. In brackets: what protects the leg of the '
        'mobile client and that of the tunnel, where it is not TLS and TLS. Tunnels and nginx '
        f'moved an eighth of the GB, scaled. {FAILED}: some requests failed. {DASH}: cannot, or '
        'had no part; all.md says why. No program that makes load used more than '
        f'{share:.2f} of a core.\n'
    )


def left_out(peers: Peers) -> Iterable[tuple[str, str]]:
    return peers.reasons.get('start', {}).items()


def busiest(found: Found) -> float:
    """The largest part of a core that a load used, in the median of its rounds."""
    every = [
        statistics.median(each.get('load', 0) for each in figures)
        for by_peer in found.values()
        for figures in by_peer.values()
    ]
    return max(every, default=0)


def write(folder: Path, found: Found, peers: Peers, rounds: int) -> None:
    folder.mkdir(exist_ok=True)
    plain = {key: dict(by_peer) for key, by_peer in found.items()}
    everything = {
        'machine': machine(),
        'rounds': rounds,
        'legs': peers.legs,
        'found': plain,
        'reasons': peers.reasons,
        'bars': [str(bound) for bound in bounds(found, peers)],
    }
    (folder / 'results.json').write_text(json.dumps(everything, indent=1) + '\n')
    (folder / 'table.md').write_text(f'{small(found, peers)}\n{note(found, rounds)}')
    bars = '\n'.join(f'    {bound}' for bound in bounds(found, peers))
    parts = [small(found, peers), note(found, rounds), __doc__.partition('\n\n')[2]]
    parts += [*long(found, peers), alone(found)]
    parts += [f'{peer} has no part: {why}\n' for peer, why in left_out(peers)]
    parts += ['### Bars\n', bars]
    (folder / 'all.md').write_text('\n'.join(parts) + '\n')
    (folder / 'picture.svg').write_text(picture(found, peers))


# The picture

WIDTH, NAMES, ROW, MOST = 1000, 230, 16, 4.0
COLOURS = {'ours': '#0b6e4f', 'floor': '#9aa0a6', 'tunnel': '#d9822b'}


def picture(found: Found, peers: Peers) -> str:
    """A row a peer and a column a figure; bars up to MOST times HAProxy's."""
    columns = [each for each in COLUMNS if each[0] in found][:6]
    panel = (WIDTH - NAMES) / max(len(columns), 1)
    height, lines = 72 + ROW * len(peers.kinds), []
    for number, (piece, name, title) in enumerate(columns):
        left = NAMES + number * panel
        for line, words in enumerate(title.split(': ')):
            lines.append(text(left, 34 + 14 * line, words, 11, 'font-weight="bold"'))
        for row, (peer, kind) in enumerate(peers.kinds.items()):
            lines += cell(ratio(found, piece, peer, name), left, 66 + row * ROW, panel, kind)
        one = left + (panel - 50) / MOST
        lines.append(f'<path d="M{one:.0f} 54V{height - 12}" stroke="#555" stroke-dasharray="2"/>')
    for row, peer in enumerate(peers.kinds):
        lines.append(text(4, 66 + row * ROW, peer, 11))
    lines.append(text(4, 14, 'HAProxy (dashed) is 1: less CPU and more speed are better', 12))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif"><rect width="100%" height="100%" fill="#fff"/>\n'
        + '\n'.join(lines)
        + '\n</svg>\n'
    )


def cell(value: float | None, left: float, top: float, panel: float, kind: str) -> list[str]:
    if value is None:
        return [text(left, top, DASH, 10)]
    wide = (panel - 50) * min(value, MOST) / MOST
    bar = f'x="{left:.0f}" y="{top - 9:.0f}" width="{wide:.1f}" height="11"'
    return [f'<rect {bar} fill="{COLOURS[kind]}"/>', text(left + wide + 3, top, f'{value:.2f}', 10)]


def text(left: float, top: float, words: str, size: int, more: str = '') -> str:
    return f'<text x="{left:.0f}" y="{top:.0f}" font-size="{size}" {more}>{words}</text>'
