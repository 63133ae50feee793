"""Why a code is wrong: for the log and the page alone, and after the answer has been sent."""

import time

import gevent
from gevent.lock import Semaphore

from rendezvous.store.state import Why
from rendezvous.wire import codes

# What the log says of the kinds of Why that are found here.
_SENTENCES = {
    'wrong': 'wrong code',
    'former': 'the secret from before the last rekey',
    'unusable': 'the entry cannot be used',
}

# Steps from now: 12 hours, of 30 seconds each. Among so many one has the same six digits by chance,
# once in 350 wrong codes. Two days for long codes, where nothing is by chance.
SHORT_STEPS, LONG_STEPS = 1440, 5760
TURN_STEPS = 100  # then others have their turn: under a millisecond
# In so long, and one for an address and a UUID: some 3% of a processor.
SEARCHES, SEARCHED_SECONDS = 30, 60


class Reasons:
    """What was found out within the last minute."""

    def __init__(self):
        # By UUID and address: when, and how many steps off. A stranger's wrong codes keep nobody
        # from finding out why those of the hidden server itself are.
        self._found: dict[tuple[str, str], tuple[float, int | None]] = {}
        self._one_at_a_time = Semaphore()

    def find(self, uuid: str, place: str, entry: dict, code: str, now: float) -> Why:
        """Why `code` was wrong at `now`, in seconds since 1970; never raises.

        `place`: the address that sent it, as addresses.network gives it.
        """
        try:
            return self._find((uuid, place), entry, code, now)
        except (ValueError, TypeError, KeyError, AttributeError):
            return Why('unusable')

    def _find(self, who: tuple[str, str], entry: dict, code: str, now: float) -> Why:
        former = entry.get('formerly')
        if former and codes.steps_off(former, code, now, codes.WINDOW) is not None:
            return Why('former')
        parameters = entry['authParams']
        with self._one_at_a_time:
            steps = self._steps_off(who, parameters, code, now)
        if steps is None:
            return Why('wrong')
        seconds = steps * codes.totp(parameters).interval
        return Why('clock', seconds, sure=len(code) > codes.SHORT_DIGITS)

    def _steps_off(
        self, who: tuple[str, str], parameters: dict, code: str, now: float
    ) -> int | None:
        for known in [each for each, (at, _) in self._found.items() if _is_over(at)]:
            del self._found[known]
        if who in self._found:
            steps = self._found[who][1]
            near = [] if steps is None else [steps, steps - 1, steps + 1]
            return codes.steps_off(parameters, code, now, near)
        if len(self._found) >= SEARCHES:
            return None
        steps = _search(parameters, code, now)
        self._found[who] = time.monotonic(), steps
        return steps


def sentence(why: Why) -> str:
    """For the log: why a code was wrong."""
    if why.kind != 'clock':
        return _SENTENCES[why.kind]
    surely, way = '' if why.sure else 'probably ', 'ahead' if why.seconds > 0 else 'behind'
    return f'its clock is {surely}{abs(why.seconds):,} s {way}'


def _is_over(at: float) -> bool:
    return time.monotonic() - at > SEARCHED_SECONDS


def _search(parameters: dict, code: str, now: float) -> int | None:
    """How many steps from now the code is right: the nearest ones first."""
    most = LONG_STEPS if len(code) > codes.SHORT_DIGITS else SHORT_STEPS
    for start in range(1, most + 1, TURN_STEPS // 2):
        steps = [sign * step for step in range(start, start + TURN_STEPS // 2) for sign in (1, -1)]
        found = codes.steps_off(parameters, code, now, steps)
        if found is not None:
            return found
        gevent.sleep(0)
    return None
