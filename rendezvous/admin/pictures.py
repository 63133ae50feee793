"""The pictures of the page as inline SVG, and each in words: pure functions of what is known.

Colours are in style.css alone; here are a class for each kind and attributes for each place, so the
policy that forbids inline style holds. Bars and plots are stretched to the width that there is
(preserveAspectRatio none), so no text is inside: words stand beside them in HTML. Each picture has
a label, one sentence that says what it shows.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate, dropwhile, groupby, pairwise
from operator import itemgetter
from typing import NamedTuple

from markupsafe import Markup

from rendezvous.admin import words
from rendezvous.admin.words import Clock, size
from rendezvous.store.state import DISABLED, NEVER, OFFLINE, ONLINE, REFUSED, Change, Hour, Known

UNKNOWN = 'unknown'  # no server ran, or it is yet to come
WIDTH, HEIGHT = 10_000, 16  # of a bar
RETURN_SECONDS = 60  # after an outage; hidden.py tries again each minute at the latest
COLUMNS = 1000  # of a bar, at most; a screen has hardly more pixels for it
# Where each state stands in a bar, from the top, and how high: height and colour both tell them
# apart. Never seen and unknown are a gap.
PLACES = {ONLINE: (0, 16), REFUSED: (7, 9), OFFLINE: (13, 3), DISABLED: (7, 2)}
# Each gets so much of the width at least, so that an outage of a minute is seen.
DAY_LEAST, WEEK_LEAST = 0.011, 0.004  # 16 and 40 minutes; two or three pixels

# The heights of a plot: down has a strip and a scale of its own, and so has up, which is mostly a
# twentieth of it. One scale for both left a sliver of up.
DOWN_HEIGHT, GAP, UP_HEIGHT = 72, 12, 28
PLOT_HEIGHT = DOWN_HEIGHT + GAP + UP_HEIGHT
SPARK_HEIGHT = 40
LEAST_OCTETS = 1  # the height of an hour that had any octets

Outages = Iterable[tuple[float, float]]  # from, to: no server ran


class Span(NamedTuple):
    """It was in one state all that time."""

    start: float
    end: float
    state: str

    @property
    def seconds(self) -> float:
        return self.end - self.start


class Share(NamedTuple):
    """How a window was shared out, from when the hidden server first came online."""

    percent: int  # online; 100 only if it was never anything else
    times: int  # it was offline or refused
    seconds: float  # it was offline or refused in all
    outages: int = 0  # of the server
    down: float = 0  # seconds that these took in all


def spans(
    changes: Iterable[Change],
    start: float,
    end: float,
    until: float | None = None,
    outages: Outages = (),
) -> list[Span]:
    """The window from `start` to `end`, cut wherever the state changes: it is covered without gaps.

    Before the first change it was never seen. Nothing is known during the outages of the server and
    after `until`, which is now, or when the last server was heard of.
    """
    events = [(each.at, 0, each.state) for each in changes]
    for a, b in [*outages, (end if until is None else until, math.inf)]:
        events += [(a, 1, ''), (max(a, b), -1, '')]
    found: list[Span] = []
    at, state, without_server = start, NEVER, 0
    for moment, step, new in sorted(events, key=itemgetter(0, 1)):
        moment = min(max(moment, start), end)
        if moment > at:
            _append(found, Span(at, moment, UNKNOWN if without_server else state))
            at = moment
        state, without_server = new or state, without_server + step
    return found


def with_present(changes: Sequence[Change], known: Known) -> list[Change]:
    """The changes, and what is known now: of a worker that was killed, nobody wrote that those who
    were registered there are offline.
    """
    last = changes[-1] if changes else Change(-math.inf, NEVER)
    if known.state in (last.state, NEVER) or known.since is None:
        return list(changes)
    return [*changes, Change(max(known.since, last.at), known.state)]


def _append(found: list[Span], span: Span) -> None:
    """Neighbours in the same state become one."""
    if found and found[-1].state == span.state:
        span = Span(found.pop().start, span.end, span.state)
    found.append(span)


def bar(found: list[Span], label: str, least: float = DAY_LEAST) -> Markup:
    """The state at each moment, as a strip. Each state that is known gets `least` of the width at
    least, where a neighbour has more.
    """
    paths: dict[str, list[str]] = {}
    found, left = _coarse(found), 0
    for span, right in zip(found, _edges(found, least), strict=True):
        if span.state in PLACES and left < right:
            y, height = PLACES[span.state]
            paths.setdefault(span.state, []).append(_box(left, y, right - left, height))
        left = right
    drawn = [_path(state, ''.join(boxes)) for state, boxes in paths.items()]
    return _svg('online-bar', WIDTH, HEIGHT, label, drawn)


def _coarse(found: list[Span]) -> list[Span]:
    """More spans than columns become columns, each in the state that lasted longest in it."""
    if len(found) <= COLUMNS:
        return found
    start, step = found[0].start, (found[-1].end - found[0].start) / COLUMNS
    lasted: list[dict[str, float]] = [defaultdict(float) for _ in range(COLUMNS)]
    for span in found:
        first, last = int((span.start - start) / step), int((span.end - start) / step)
        for column in range(first, min(last, COLUMNS - 1) + 1):
            begin = start + column * step
            seconds = min(span.end, begin + step) - max(span.start, begin)
            lasted[column][span.state] += seconds
    columns: list[Span] = []
    for column, states in enumerate(lasted):
        begin = start + column * step
        _append(columns, Span(begin, begin + step, max(states, key=states.__getitem__)))
    return columns


def _edges(found: list[Span], least: float) -> list[int]:
    """Where each span ends in the strip."""
    whole = sum(span.seconds for span in found)
    widths = [span.seconds / whole for span in found]
    for i, span in enumerate(found):
        for neighbour in i + 1, i - 1:
            if span.state in PLACES and 0 <= neighbour < len(found):
                taken = min(least - widths[i], widths[neighbour] - least)
                if taken > 0:
                    widths[i] += taken
                    widths[neighbour] -= taken
    return [round(WIDTH * min(width, 1)) for width in accumulate(widths)]


def state_words(found: list[Span], clock: Clock) -> str:
    """`online but from 08:55 to 09:12`: what a bar shows, for those who do not see it."""
    known = [span for span in found if span.state != UNKNOWN]
    if not known:
        return 'nothing is known'
    if any(map(_is_online, known)):
        said = _with_online(known, clock)
    else:
        said = _without_online(known, clock)
    lost = [each for each in found if each.state == UNKNOWN and each.start < clock.present() - 1]
    if not lost:
        return 'online throughout' if said == ONLINE else said
    return f'{said}; nothing is known {_lost_words(lost, found[-1], clock)}'


def day_words(found: list[Span], clock: Clock) -> str:
    return f'Last 24 hours: {state_words(found, clock)}'


def week_words(found: list[Span], now: float) -> str:
    """`online 94 % of it; offline 3 times, 8 h 53 min; the server was down once, 1 min`; '' where
    that says too little.
    """
    part = share(found, now)
    if not part or any(span.state == DISABLED for span in found):
        return ''
    said = [f'online {part.percent} % of it']
    if part.times:
        said.append(f'offline {_often(part.times)}, {words.length(part.seconds)}')
    if part.outages:
        said.append(f'the server was down {_often(part.outages)}, {words.length(part.down)}')
    return '; '.join(said) if said[1:] else 'online throughout'


def _often(times: int) -> str:
    return {1: 'once', 2: 'twice'}.get(times, f'{times} times')


def share(found: list[Span], now: float) -> Share | None:
    """None: it was never online."""
    some = _with_returns(_since_first([Span(a, min(b, now), c) for a, b, c in found if a < now]))
    online = sum(span.seconds for span in some if span.state == ONLINE)
    if not online:
        return None
    known = groupby((span for span in some if span.state != UNKNOWN), _kind)
    times = sum(kind == 'offline' for kind, _ in known)
    offline = sum(span.seconds for span in some if _kind(span) == 'offline')
    downs = [
        span.seconds
        for before, span in pairwise([Span(0, 0, ONLINE), *some])
        if span.state == UNKNOWN and before.state != DISABLED
    ]
    percent = math.floor(100 * online / (online + offline + sum(downs)))
    return Share(percent, times, offline, len(downs), sum(downs))


def _since_first(found: list[Span]) -> list[Span]:
    """From when it came online for the first time, if that is within them."""
    never = [number for number, span in enumerate(found) if span.state == NEVER]
    after = found[never[-1] + 1 :] if never else found
    return list(dropwhile(lambda span: span.state != ONLINE, after)) if never else after


def _with_returns(found: list[Span]) -> list[Span]:
    """An outage of the server lasts until the hidden server is back, where that is soon."""
    some: list[Span] = []
    bounds = [Span(0, 0, ''), *found, Span(0, 0, '')]
    for before, span, after in zip(bounds, found, bounds[2:], strict=False):
        is_return = span.state == OFFLINE and UNKNOWN in (before.state, after.state)
        is_soon = span.seconds <= RETURN_SECONDS
        _append(some, span._replace(state=UNKNOWN) if is_return and is_soon else span)
    return some


def _is_online(span: Span) -> bool:
    return span.state == ONLINE


def _kind(span: Span) -> str:
    """Refused is offline, too; disabled and never seen are neither."""
    return {ONLINE: 'online', OFFLINE: 'offline', REFUSED: 'offline'}.get(span.state, '')


def _without_online(known: list[Span], clock: Clock) -> str:
    first, last = known[0], known[-1]
    if first.state == last.state:
        return 'never online' if first.state == NEVER else first.state
    return f'{first.state} until {clock.at(first.end)}, {last.state} since {clock.at(last.start)}'


def _with_online(known: list[Span], clock: Clock) -> str:
    runs = [list(some) for _, some in groupby(known, _is_online)]
    before = runs.pop(0) if not _is_online(runs[0][0]) else None
    after = runs.pop() if not _is_online(runs[-1][0]) else None
    said = ONLINE
    if before:
        said += f' {"from" if after else "since"} {clock.at(before[-1].end)}'
    if after:
        said += f' until {clock.at(after[0].start)}'
    said += _breaks_words([Span(run[0].start, run[-1].end, '') for run in runs[1::2]], clock)
    if after:
        when = f' {clock.at(after[-1].start)}' if len(after) > 1 else ''
        said += f', {after[-1].state} since{when}'
    return said


def _breaks_words(breaks: list[Span], clock: Clock) -> str:
    if len(breaks) > 2:
        longest = words.length(max(each.seconds for each in breaks))
        return f' but for {len(breaks)} outages, the longest {longest}'
    times = ' and '.join(_from_to(each, clock) for each in breaks)
    return f' but {times}' if times else ''


def _lost_words(lost: list[Span], last: Span, clock: Clock) -> str:
    """While no server ran. `last`: of the whole window."""
    if len(lost) > 2:
        return f'of {len(lost)} times'
    times = (
        f'since {clock.at(each.start)}' if each == last else _from_to(each, clock) for each in lost
    )
    return ' and '.join(times)


def _from_to(span: Span, clock: Clock) -> str:
    return f'from {clock.at(span.start)} to {clock.at(span.end)}'


def nice(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, ... that is not below it."""
    unit = 10.0 ** math.floor(math.log10(max(value, 1)))
    return next(step * unit for step in (1, 2, 5, 10) if step * unit >= value)


def traffic(hours: list[Hour], label: str) -> Markup:
    """Octets an hour: above those to mobile clients, below those from them, each to its scale."""
    tops, across = _tops(hours), f'H{len(hours)}'
    base, up_top = DOWN_HEIGHT, DOWN_HEIGHT + GAP
    grid = ''.join(f'M0 {y:g}{across}' for y in (0.5, base / 2, up_top + 0.5))
    drawn = [
        _path('grid', grid),
        _steps('down', [hour.down for hour in hours], base, base / tops.down),
        _steps('up', [hour.up for hour in hours], PLOT_HEIGHT, UP_HEIGHT / tops.up),
        _path('axis', f'M0 {base}{across}M0 {PLOT_HEIGHT - 0.5}{across}'),
    ]
    return _svg('traffic', len(hours), PLOT_HEIGHT, label, drawn)


def scale(hours: list[Hour]) -> Markup:
    """The words beside `traffic`: it is not stretched, so there can be text. For the eye alone."""
    tops, up_top = _tops(hours), DOWN_HEIGHT + GAP
    said = [
        (10, f'↓ {size(tops.down)}'),
        (DOWN_HEIGHT / 2 + 4, size(tops.down / 2)),
        (DOWN_HEIGHT, '0'),
        (up_top + 9, f'↑ {size(tops.up)}'),
        (PLOT_HEIGHT, '0'),
    ]
    texts = ''.join(f'<text x="60" y="{y:g}">{text}</text>' for y, text in said)
    head = f'<svg class="scale" aria-hidden="true" width="64" height="{PLOT_HEIGHT}">'
    return Markup(f'{head}{texts}</svg>')


def lines(hours: list[Hour]) -> str:
    """`1 GB and 2 GB an hour down, 100 MB an hour up`: where `traffic` has its lines."""
    tops = _tops(hours)
    return f'{size(tops.down / 2)} and {size(tops.down)} an hour down, {size(tops.up)} an hour up'


def spark(hours: list[Hour], label: str) -> Markup:
    """`traffic` without a scale: up hangs below the line, in the same measure as down."""
    up, down = [hour.up for hour in hours], [hour.down for hour in hours]
    measure = (SPARK_HEIGHT - 2 * LEAST_OCTETS) / max(max(up, default=0) + max(down, default=0), 1)
    base = SPARK_HEIGHT - max(LEAST_OCTETS, round(max(up, default=0) * measure)) - LEAST_OCTETS
    drawn = [
        _steps('down', down, base, measure),
        _steps('up', up, base, -measure),
        _path('axis', f'M0 {base}H{len(hours)}'),
    ]
    return _svg('traffic', len(hours), SPARK_HEIGHT, label, drawn)


def traffic_words(hours: list[Hour], when: str) -> str:
    """`Octets an hour in the last 24 hours: down 5.5 GB in all, 1.2 GB at most; up ...`."""
    said = []
    for name, octets in (
        ('down', [hour.down for hour in hours]),
        ('up', [hour.up for hour in hours]),
    ):
        most = f', {size(max(octets))} at most' if any(octets) else ''
        said.append(f'{name} {size(sum(octets))} in all{most}')
    return f'Octets an hour {when}: {"; ".join(said)}'


def meter(used: float, most: float, what: str) -> Markup:
    """How much of the most that is allowed is used. `what`: connections."""
    part = min(max(used / most, 0), 1) if most else 0
    right = max(round(WIDTH * part), WIDTH // 100 if part else 0)
    label = f'{100 * part:.0f} % of the {what} that are allowed'
    if 0 < part < 0.005:
        label = f'less than 1 % of the {what} that are allowed'
    drawn = [_path('room', _box(0, 0, WIDTH, 6)), _path('used', _box(0, 0, right, 6))]
    return _svg('meter', WIDTH, 6, label, drawn)


def link(solid: int, dashed: int = 0, kind: str = '') -> Markup:
    """Connections between two ends, the arrow at whom was dialled: `solid` open ones between
    `dashed` waiting ones, at most seven lines. The words beside it count them all.

    `kind`, where there are none: `cut` (refused); else nothing is connected.
    """
    above, below = min(dashed, 4) // 2, (min(dashed, 4) + 1) // 2
    kinds = ['waiting'] * above + ['open'] * min(solid, 3) + ['waiting'] * below
    kinds = kinds or [kind or 'none']
    step = 6 if len(kinds) > 5 else 8
    first = 24 - step / 2 * (len(kinds) - 1)
    drawn = [_path(each, f'M-2000 {first + step * i:g}H34') for i, each in enumerate(kinds)]
    if kinds != ['none']:
        drawn.append(_path('head', 'M34 18L42 24L34 30Z'))
    if kinds == ['cut']:
        drawn.append(_path('cross', 'M8 16L24 32M24 16L8 32'))
    head = '<svg class="link" aria-hidden="true" viewBox="0 0 44 48"'
    return Markup(f'{head} preserveAspectRatio="xMaxYMid meet">{"".join(drawn)}</svg>')


def link_words(pipes: int, waiting: int | None = None) -> str:
    """`1 open, 4 waiting`: the words below a link. None: nobody waits at that end."""
    said = f'{pipes or "none"} open'
    return said if waiting is None else f'{said}, {waiting or "none"} waiting'


class _Tops(NamedTuple):
    """The octets at the top line of each strip."""

    down: float
    up: float


def _tops(hours: list[Hour]) -> _Tops:
    down = max((hour.down for hour in hours), default=0)
    return _Tops(nice(down), nice(max((hour.up for hour in hours), default=0)))


def _steps(kind: str, values: list[int], base: float, measure: float) -> str:
    """One step an hour, away from the base line: up, or down where `measure` is below 0."""
    least = math.copysign(LEAST_OCTETS, measure)
    path = f'M0 {base:g}'
    for hour, value in enumerate(values, 1):
        height = max(value * measure, least, key=abs) if value else 0
        path += f'V{base - height:.1f}H{hour}'
    return _path(kind, f'{path}V{base:g}Z')


def _box(x: int, y: int, width: int, height: int) -> str:
    return f'M{x} {y}h{width}v{height}h-{width}z'


def _path(kind: str, path: str) -> str:
    return f'<path class="{kind}" d="{path}"/>'


def _svg(kind: str, width: int, height: int, label: str, drawn: list[str]) -> Markup:
    head = Markup('<svg class="{}" role="img" aria-label="{}" viewBox="0 0 {} {}"')
    head = head.format(kind, label, width, height)
    return head + Markup(f' preserveAspectRatio="none">{"".join(drawn)}</svg>')
