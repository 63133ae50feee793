"""The codes of a hidden server (RFC 6238), short and long ones: functions of their arguments."""

import hashlib
import hmac
import re
from collections.abc import Iterable

import pyotp

UUID = re.compile('[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}', re.I | re.A)
SHORT_DIGITS = 8  # a longer code is a long one
_ALGORITHMS = {'sha1': hashlib.sha1, 'sha256': hashlib.sha256, 'sha512': hashlib.sha512}
WINDOW = -1, 0, 1  # the steps, counted from the current one, whose codes are right


def totp(parameters: dict) -> pyotp.TOTP:
    """What makes the codes (RFC 6238) of an entry with these authParams.

    Raises ValueError, TypeError, KeyError or AttributeError where they make no sense.
    """
    digits = parameters.get('digits', 6)
    if digits not in (6, 7, 8):
        raise ValueError('digits must be 6, 7 or 8')
    step = parameters.get('step', 30)
    if step < 1:
        raise ValueError('step must be 1 second or more')
    return pyotp.TOTP(
        parameters['base32'],
        digits=digits,
        digest=_ALGORITHMS[parameters.get('algorithm', 'sha1').lower()],
        interval=step,
    )


def long_code(totp_or_parameters: pyotp.TOTP | dict, now: float) -> str:
    """The whole HMAC that the code at `now`, in seconds since 1970, is cut from (RFC 4226 section
    5.3), in hexadecimal: nobody guesses that. Raises as totp does.
    """
    made = totp_or_parameters
    made = made if isinstance(made, pyotp.TOTP) else totp(made)
    return _whole(_keyed(made), _step(made, now)).hex()


def code_is_right(parameters: dict, code: str, now: float) -> bool:
    """Whether `code`, a short or a long one, is the one at `now`, in seconds since 1970, or next
    to it. Raises as totp does.
    """
    return steps_off(parameters, code, now, WINDOW) is not None


def steps_off(parameters: dict, code: str, now: float, steps: Iterable[int]) -> int | None:
    """Which of these steps, counted from `now`, has this code: the first one. Raises as totp does.

    All of them are looked at: how long it takes does not say where it was found.
    """
    made, found = totp(parameters), None
    current, keyed, short = _step(made, now), _keyed(made), len(code) <= SHORT_DIGITS
    for step in steps:
        whole = _whole(keyed, max(0, current + step))
        right = _cut(whole, made.digits) if short else whole.hex()
        if hmac.compare_digest(code, right) and found is None:
            found = step
    return found


def _step(made: pyotp.TOTP, now: float) -> int:
    return int(now // made.interval)


def _keyed(made: pyotp.TOTP) -> hmac.HMAC:
    return hmac.new(made.byte_secret(), None, made.digest)


def _whole(keyed: hmac.HMAC, step: int) -> bytes:
    each = keyed.copy()
    each.update(step.to_bytes(8, 'big'))
    return each.digest()


def _cut(whole: bytes, digits: int) -> str:
    """RFC 4226 section 5.3: 31 bits, from where the last four say, and their last digits."""
    start = whole[-1] & 0xF
    number = int.from_bytes(whole[start : start + 4], 'big') & 0x7FFF_FFFF
    return f'{number % 10**digits:0{digits}}'
