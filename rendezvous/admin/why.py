"""Why a hidden server is not online, and what to do, in words: for the page and for the shell.

`brief` is for a row of a table. `advice` is for the page of an entry and for `users_app.py show`.
"""

from collections.abc import Callable
from typing import NamedTuple

from rendezvous.admin.words import MINUTE, Clock, apart
from rendezvous.store.rations import MOST
from rendezvous.store.state import (
    DISABLED,
    NEVER,
    OFFLINE,
    ONLINE,
    REFUSED,
    Known,
    Refusals,
    Why,
)

SET_CLOCK = 'sudo timedatectl set-ntp true'
CLEAR, REKEY = 'clear', 'rekey'  # what a button does
# A second machine that is refused tries again each quarter of an hour at least, where it has to
# wait. What is older is over while one is online.
LATELY_SECONDS = 20 * MINUTE
TWINS_SECONDS = 2.5 * MINUTE  # the workers note each minute that two wait with one file
ENABLED_SECONDS = 90  # one that was refused while it was disabled tries again each minute
SLACK_SECONDS = 2  # that it is offline, and the refusal that it goes with, are noted one by one


class Advice(NamedTuple):
    """One thing that is wrong, and what to do."""

    kind: str  # of state.Why, or OFFLINE
    at: float  # the last refusal of that kind, in seconds since 1970; it left then
    heading: str  # what is wrong, as a sentence without a full stop
    text: str = ''  # what that means, and what to do
    command: str = ''  # for the hidden machine
    after: str = ''  # what follows then
    until: float = 0  # it ends by itself then, which the heading does not say; 0: it does not
    what: str = ''  # CLEAR or REKEY helps; '': neither
    button: str = ''  # what the button for that says
    brings: bool = False  # the file of the entry is to be brought to the hidden machine
    brief: str = ''  # the same in a few words


def brief(why: Why) -> str:
    """A few words: `Clock 61 minutes ahead`."""
    if why.kind == 'clock':
        return f'Clock {_surely(why)}{_off(why)}'
    return _BRIEF.get(why.kind, 'Refused')


_BRIEF = {
    'former': 'Old secret: it needs the new file',
    'wrong': 'Wrong code',
    'unusable': 'No usable secret: it needs a new one',
    'disabled': 'Disabled',
    'address': 'Has to wait: too many wrong codes',
    'strangers': 'Has to wait: strangers tried wrong codes',
    'friend': 'Has to wait: too many wrong codes in a day',
    'full': 'The server is full',
    'twins': 'Two machines use its file',
}


def reason(known: Known) -> str:
    """Why it is refused, in a few words; '' where it is not."""
    return brief(known.why) if known.state == REFUSED and known.why else ''


def _beside(why: Why) -> str:
    """The same, where the hidden server itself is online: mostly it is another machine."""
    if why.kind == 'clock':
        return f"A second machine's clock is {_surely(why)}{_off(why)}"
    return _BESIDE.get(why.kind, brief(why))


_BESIDE = {
    'former': 'A second machine has the old secret',
    'address': 'A second machine has to wait',
    'strangers': 'Strangers tried wrong codes',
    'friend': 'Short codes are refused',
}


def is_refusal(row: Refusals) -> bool:
    """Whether it kept anybody out; two machines with one file are both let in."""
    return row.why.kind != 'twins'


def said(known: Known, clock: Clock) -> str:
    """The state in words: `Online since 09:12`, `Refused 12 s ago`, `Never seen`."""
    if known.state == REFUSED:
        return f'Refused {clock.ago(known.refused or clock.present())}'
    if known.state in (ONLINE, OFFLINE, DISABLED) and known.since:
        return f'{known.state.capitalize()} since {clock.at(known.since)}'
    return known.state.capitalize()


def advice(
    found: list[Refusals],
    known: Known,
    clock: Clock,
    used_up: float | None = None,
    file: str = '',
) -> list[Advice]:
    """What is wrong now, each once, the newest first. `used_up` is that of `Entries`. `file`: what
    the one for the hidden machine is called; '' while the server is down, which is why it is
    offline then.

    What is over is left out: a ration that is there again, and what was refused before the hidden
    server came online or, where it is not, before it left. That an address has to wait follows
    from wrong codes, so why they were wrong is said before.
    """
    chosen: dict[str, Advice] = {}
    rows = [row for row in found if row.why.kind != 'strangers']
    if used_up:  # it says whether that is so now
        rows.append(Refusals(Why('strangers'), '', used_up, used_up, 1, 0))
    for row in sorted(rows, key=lambda row: -row.last):
        if row.why.kind not in chosen and row.why.kind in _ADVICE and _matters(row, known, clock):
            is_other = known.state == ONLINE or row.address != known.address
            words = _beside(row.why) if known.state == ONLINE else brief(row.why)
            each = _ADVICE[row.why.kind](row, is_other, clock)
            chosen[row.why.kind] = each._replace(brief=words)
    some = sorted(chosen.values(), key=lambda each: each.kind == 'address')
    if known.state == OFFLINE and known.since and file:
        some.insert(0, _offline(known.since, file, found, clock))
    return some


def _matters(row: Refusals, known: Known, clock: Clock) -> bool:
    if row.why.kind == 'address' and row.until <= clock.present():
        return False
    if known.state == DISABLED:  # the page says that already, and nothing else helps
        return False
    if row.why.kind == 'strangers':
        return True
    lately = TWINS_SECONDS if row.why.kind == 'twins' else LATELY_SECONDS
    is_late = clock.present() - row.last > lately
    if known.state == ONLINE and (is_late or row.why.kind == 'wrong'):  # limits keep guessers out
        return False
    if known.state == NEVER or known.since is None:
        return True
    slack = SLACK_SECONDS if known.state in (OFFLINE, REFUSED) else 0
    return row.last > known.since - slack  # what was before it was last online is over


def beside(found: list[Refusals], known: Known, clock: Clock, used_up: float | None = None) -> str:
    """What is wrong although it is online, in a few words; '': all is well, or it is not online."""
    some = advice(found, known, clock, used_up) if known.state == ONLINE else []
    return some[0].brief if some else ''


def lines(some: list[Advice], clock: Clock) -> list[str]:
    """For the shell: a sentence or two for each, and a command in a line of its own."""
    found = []
    for each in some:
        until = f' until {clock.at(each.until)}' if each.until else ''
        found.append(f'{each.heading}{until}. {each.text}'.strip())
        if each.command:
            found.append(f'    {each.command}')
        if each.after:
            found.append(each.after)
    return found


def _offline(since: float, file: str, found: list[Refusals], clock: Clock) -> Advice:
    last = max(found, key=lambda row: row.last, default=None)
    before = max(since - SLACK_SECONDS, clock.present() - ENABLED_SECONDS)
    if last and last.why.kind == 'disabled' and last.last > before:
        heading = 'It was refused while it was disabled, and tries again within a minute'
        return Advice(OFFLINE, since, heading, brief='Offline')
    return Advice(
        *(OFFLINE, since),
        f'It has not tried to register since {clock.at(since)}',
        'It is off, has no network, its program does not run, or it does not find this server. '
        '(After a change of rendezvous_host or rendezvous_port it needs its new file.) '
        'On that machine, see whether the program runs. If it does not, start it:',
        f'python3 {file} 127.0.0.1:8000',
        'It then says "registered at" and the name of this server, or what is wrong.',
        brief='Offline',
    )


# Each of these is given a refusal, and whether it is that of another machine than the one that is
# online, or has tried last.


def _clock(row: Refusals, is_other: bool, clock: Clock) -> Advice:
    why = row.why
    right = 'It has the right secret' if why.sure else 'It seems to have the right secret'
    probably = '' if why.sure else ' A short code may also look so by chance.'
    whose = f'a second machine, at {row.address},' if is_other else 'the hidden machine'
    return Advice(
        *('clock', row.last),
        f'The clock of {whose} is {_surely(why)}{_off(why)}',
        f'{right}, but its code is that of {clock.at(row.last + why.seconds)}.{probably} On '
        'that machine:',
        SET_CLOCK,
        'Nothing has to be changed here: when its clock is right, it is let in.',
    )


def _former(row: Refusals, is_other: bool, clock: Clock) -> Advice:
    if is_other:
        return Advice(
            *('former', row.last),
            f'A second machine, at {row.address}, has the file from before the new secret',
            'Stop it, or make an entry of its own for it.',
        )
    return Advice(
        *('former', row.last),
        'It uses the secret from before the new one',
        'Bring the new file to the hidden machine, and start it there again. If it has that file '
        'already, a second machine still has the old one: stop it.',
        brings=True,
    )


def _wrong(row: Refusals, is_other: bool, clock: Clock) -> Advice:
    if is_other:
        return Advice(
            *('wrong', row.last),
            f'Somebody at {row.address} tries wrong codes',
            'That is another machine with a wrong file, or somebody who guesses. '
            'Limits keep guessers out: nothing has to be done.',
        )
    return Advice(
        *('wrong', row.last),
        'Its code is wrong',
        'It is that of neither this secret nor the one before, and a wrong clock does not explain '
        'it. The file there may be that of another entry, or an old one. Bring the right file to '
        'the hidden machine, and start it there again. If the file is right, check the date and '
        'the time there.',
        brings=True,
    )


def _unusable(row: Refusals, is_other: bool, clock: Clock) -> Advice:
    return Advice(
        *('unusable', row.last),
        'The entry has no secret that can be used',
        'Another program has written it so. Give it a new secret, bring the new file to the hidden '
        'machine, and start it there again.',
        what=REKEY,
        button='Give it a new secret',
        brings=True,
    )


def _address(row: Refusals, is_other: bool, clock: Clock) -> Advice:
    return Advice(
        *('address', row.last),
        f'The machine at {row.address} has to wait' if is_other else 'It has to wait',
        f'Too many wrong codes came from {row.address} within 15 minutes. Until then short codes '
        'from there are refused. A right long code, as hidden.py sends it, is let in; after '
        f'{MOST} wrong codes no code is.',
        until=row.until,
        what=CLEAR,
        button='Let it try now',
    )


def _strangers(row: Refusals, is_other: bool, clock: Clock) -> Advice:
    return Advice(
        *('strangers', row.last),
        'Short codes from new addresses are refused',
        f'At {clock.at(row.last)} somebody had tried too many wrong codes within a day. '
        'hidden.py sends long codes, which are let in. A program of node-rendezvous sends short '
        'ones, and has to wait for a day.',
        what=CLEAR,
        button='Accept short codes again',
    )


def _friend(row: Refusals, is_other: bool, clock: Clock) -> Advice:
    return Advice(
        *('friend', row.last),
        f'Short codes from {row.address} are refused',
        'Too many wrong codes came from there within a day. hidden.py sends long codes, which are '
        'let in. A program of node-rendezvous sends short ones, and has to wait for a day.',
        what=CLEAR,
        button='Accept short codes again',
    )


def _full(row: Refusals, is_other: bool, clock: Clock) -> Advice:
    return Advice(
        *('full', row.last),
        'The server has no room for it',
        'Its code is right, and there are as many connections as max_connections in local.py '
        'allows. Set it higher, and start the server again.',
    )


def _twins(row: Refusals, is_other: bool, clock: Clock) -> Advice:
    one, other = sorted([row.address, row.why.other])  # either may be the one that is noted
    where = f'at {one} and at {other}' if one != other else f'both at {one}'
    return Advice(
        *('twins', row.last),
        f'Two machines or processes use this file: {where}',
        'A visit reaches the one or the other by chance. Stop one of them, or make an entry of its '
        'own for each. This line goes by itself within three minutes after one has stopped.',
    )


_ADVICE: dict[str, Callable[[Refusals, bool, Clock], Advice]] = {
    'clock': _clock,
    'former': _former,
    'wrong': _wrong,
    'unusable': _unusable,
    'address': _address,
    'strangers': _strangers,
    'friend': _friend,
    'full': _full,
    'twins': _twins,
}


def _surely(why: Why) -> str:
    return '' if why.sure else 'probably '


def _off(why: Why) -> str:
    return f'{apart(why.seconds)} {"ahead" if why.seconds > 0 else "behind"}'
