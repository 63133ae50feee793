"""Why a hidden server is not online, and what to do, in words: for the page and for the shell.

`brief` is for a row of a table. `advice` is for the page of an entry and for `users_app.py show`.
"""

from typing import NamedTuple

from rendezvous.admin.words import Clock, apart
from rendezvous.store.state import DISABLED, OFFLINE, ONLINE, REFUSED, Known, Refusals, Why

SET_CLOCK = 'sudo timedatectl set-ntp true'
CLEAR, ENABLE, REKEY = 'clear', 'enable', 'rekey'  # what a button does
_SLACK_SECONDS = 2  # the last refusal is noted in two places


class Advice(NamedTuple):
    """One thing that is wrong, and what to do."""

    kind: str  # of state.Why
    at: float  # the last refusal of that kind, in seconds since 1970
    heading: str  # what is wrong
    text: str = ''  # what it means, and what to do
    command: str = ''  # for the hidden machine
    after: str = ''  # what follows then
    until: float = 0  # it ends by itself then; 0: it does not
    what: str = ''  # CLEAR, ENABLE or REKEY helps; '': none of them
    button: str = ''  # what the button for that says


def brief(why: Why) -> str:
    """A few words: `Clock 61 minutes ahead`."""
    if why.kind == 'clock':
        surely = '' if why.sure else 'probably '
        return f'Clock {surely}{_off(why)}'
    return _BRIEF.get(why.kind, 'Refused')


_BRIEF = {
    'former': 'Old secret: it needs the new file',
    'wrong': 'Wrong code',
    'unusable': 'No usable secret: it needs a new one',
    'disabled': 'Disabled',
    'address': 'Too many wrong codes: it has to wait',
    'strangers': 'Too many wrong codes of strangers',
    'friend': 'Too many wrong codes of its address',
    'full': 'The server is full',
    'twins': 'Two machines use its file',
}


def advice(
    found: list[Refusals], known: Known, clock: Clock, used_up: float | None = None
) -> list[Advice]:
    """What is wrong now, each once, the newest first; that it has to wait comes last."""
    return []


def said(known: Known, clock: Clock) -> str:
    """The state in words: `Online since 09:12`, `Refused 12 s ago`, `Never seen`."""
    if known.state == REFUSED:
        return f'Refused {clock.ago(known.refused or clock.present())}'
    if known.state in (ONLINE, OFFLINE, DISABLED) and known.since:
        return f'{known.state.capitalize()} since {clock.at(known.since)}'
    return known.state.capitalize()


def lines(some: list[Advice], clock: Clock) -> list[str]:
    """For the shell, some lines for each."""
    return []


def _off(why: Why) -> str:
    return f'{apart(why.seconds)} {"ahead" if why.seconds > 0 else "behind"}'
