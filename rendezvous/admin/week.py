"""How long a hidden server was in which state within some time; pure."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from rendezvous.admin import words
from rendezvous.store.state import NEVER, ONLINE, Change, Known


class Span(NamedTuple):
    """It was in that state all the time; times are in seconds since 1970."""

    state: str
    start: float
    end: float


def spans(changes: Sequence[Change], known: Known, start: float, end: float) -> list[Span]:
    """From its changes of state, the oldest first; `end` is the present.

    They begin at `start`, or when it was seen for the first time. The worker that it had may have
    been killed: then nobody wrote that it is not online any more, and `known` says it.
    """
    changes = list(changes)
    if changes and known.state not in (changes[-1].state, NEVER) and known.since:
        changes.append(Change(max(known.since, changes[-1].at), known.state))
    ends = [after.at for _, after in pairwise(changes)] + [end]
    cut = (
        Span(each.state, max(each.at, start), min(until, end))
        for each, until in zip(changes, ends, strict=False)
    )
    return [each for each in cut if each.start < each.end]


def share(some: Sequence[Span]) -> str:
    """`online 98 % of the time; not online twice, for 40 min in all`."""
    whole = sum(each.end - each.start for each in some)
    online = sum(each.end - each.start for each in some if each.state == ONLINE)
    if online == whole:
        return 'online all the time'
    states = [ONLINE, *(each.state for each in some)]
    times = sum(before == ONLINE != after for before, after in pairwise(states))
    off = words.length(whole - online)
    often = 'once' if times == 1 else f'{times} times'
    lost = f'not online {often}, for {off}{"" if times == 1 else " in all"}'
    return f'online {int(100 * online / whole)} % of the time; {lost}'
