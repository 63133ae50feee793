"""The codes of a hidden server, short and long (RFC 6238): functions of their arguments."""

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from typing import Any

import pyotp

UUID = re.compile('[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}', re.I | re.A)
SHORT_DIGITS = 8  # at most; a code with more is a long one
WINDOW = -1, 0, 1  # the codes of these steps are right, counted from the current one
_ALGORITHMS = {'sha1': hashlib.sha1, 'sha256': hashlib.sha256, 'sha512': hashlib.sha512}


def totp(parameters: Mapping[str, Any]) -> pyotp.TOTP:
    """Makes the codes (RFC 6238) of an entry that has these authParams.

    Raises ValueError, TypeError, KeyError or AttributeError if they make no sense.
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


def long_code(totp_or_parameters: pyotp.TOTP | Mapping[str, Any], now: float) -> str:
    """The long code at `now`, in seconds since 1970: nobody can guess it. Raises as totp does.

    It is the whole HMAC from which the short code is cut (RFC 4226 section 5.3), in hexadecimal.
    """
    given = totp_or_parameters
    maker = given if isinstance(given, pyotp.TOTP) else totp(given)
    return _hmac_of_step(_keyed_hmac(maker), _step_at(maker, now)).hex()


def code_is_right(parameters: Mapping[str, Any], code: str, now: float) -> bool:
    """Whether `code`, short or long, is right at `now`, in seconds since 1970. Raises as totp does.

    The codes of the step before and of the step after are right, too.
    """
    return steps_off(parameters, code, now, WINDOW) is not None


def steps_off(
    parameters: Mapping[str, Any], code: str, now: float, steps: Iterable[int]
) -> int | None:
    """The first of these steps, counted from `now`, that has this code. Raises as totp does.

    It always looks at all of them: the time that it takes does not tell which one it found.
    """
    maker, found = totp(parameters), None
    current, keyed, is_short = _step_at(maker, now), _keyed_hmac(maker), len(code) <= SHORT_DIGITS
    for step in steps:
        whole = _hmac_of_step(keyed, max(0, current + step))
        right = _short_code(whole, maker.digits) if is_short else whole.hex()
        if hmac.compare_digest(code, right) and found is None:
            found = step
    return found


def _step_at(maker: pyotp.TOTP, now: float) -> int:
    return int(now // maker.interval)


def _keyed_hmac(maker: pyotp.TOTP) -> hmac.HMAC:
    return hmac.new(maker.byte_secret(), None, maker.digest)


def _hmac_of_step(keyed: hmac.HMAC, step: int) -> bytes:
    copied = keyed.copy()
    copied.update(step.to_bytes(8, 'big'))
    return copied.digest()


def _short_code(whole: bytes, digits: int) -> str:
    """RFC 4226 section 5.3: the last four bits say where 31 bits are taken, in decimal digits."""
    start = whole[-1] & 0xF
    number = int.from_bytes(whole[start : start + 4], 'big') & 0x7FFF_FFFF
    return f'{number % 10**digits:0{digits}}'
