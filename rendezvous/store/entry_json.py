"""An entry as Redis holds it: a JSON object, written by us, by node-rendezvous or by anybody else.

So each value of an entry that was read may be missing, or of any type.
"""

import json
import re
from typing import Any, TypedDict
from unicodedata import category, combining, normalize
from urllib.parse import quote, urlencode

import pyotp

from rendezvous.wire import codes

DIGITS = 8  # of a code; programs for node-rendezvous can only use 6
SECRET_CHARACTERS = 64  # of base32: 40 octets, as node-rendezvous made them
JOINERS = '\u200c\u200d'  # they join letters, in Persian, and pictures
CHARACTERS = 64 * 1024  # of an entry: hundreds of times what we write
NOTE = 400  # characters of a note
TEXT = 200  # characters of another text that is shown
LEVELS = 20  # of lists and objects within each other; ours has two
LATEST = 253402300800  # the year 10000, in seconds since 1970, where calendars end

_NUMBERS = re.compile('([0-9]+)')

Json = dict[str, Any]  # an object that was read


class AuthParams(TypedDict):
    """The secret, in the form of node-rendezvous."""

    protocol: str
    algorithm: str
    length: int  # of the secret, in octets
    step: int  # seconds that a code is valid
    digits: int
    base32: str
    name: str
    issuer: str


class Entry(TypedDict, total=False):
    """What we write into an entry."""

    uuid: str
    labels: list[str]
    note: str
    created: float  # seconds since 1970, as are the next two
    disabled: float
    enabled: float
    saved: str  # by this the plan to save it with another host name is known, see names.py
    authURL: str
    authParams: AuthParams
    formerly: AuthParams  # the secret before this one: it registers nobody


def read(value: str | bytes | None) -> Json | None:
    """The JSON object; None where it is something else, or too large or too deep for an entry."""
    if not value or len(value) > CHARACTERS:
        return None
    try:
        entry = json.loads(value)
    except (ValueError, RecursionError):
        return None
    may_be_deep = sum(map(str(value).count, '[{')) > LEVELS
    if not isinstance(entry, dict) or (may_be_deep and _is_deep(entry)):
        return None
    return entry


def _is_deep(entry: dict) -> bool:
    """Whether it is nested deeper than JSON and `repr` can follow when it is written again."""
    layer: list[Any] = [entry]
    for _ in range(LEVELS):
        inner = [each.values() if isinstance(each, dict) else each for each in layer]
        layer = [each for some in inner for each in some if isinstance(each, dict | list)]
    return bool(layer)


def secret(uuid: str, digits: int, issuer: str) -> Entry:
    """The part of an entry that a new secret changes."""
    base32 = pyotp.random_base32(SECRET_CHARACTERS)
    query = urlencode({'secret': base32, 'issuer': issuer, 'digits': digits})
    return {
        'authURL': f'otpauth://totp/{quote(issuer)}:{uuid}?{query}',
        'authParams': {
            'protocol': 'totp',
            'algorithm': 'sha1',
            'length': 40,
            'step': 30,
            'digits': digits,
            'base32': base32,
            'name': uuid,
            'issuer': issuer,
        },
    }


def digits(entry: dict) -> int:
    """How many digits its codes have: 6 where it does not say so, as with node-rendezvous."""
    parameters = entry.get('authParams')
    found = parameters.get('digits', 6) if isinstance(parameters, dict) else DIGITS
    return found if type(found) is int and found in (6, 7, 8) else DIGITS


def is_sound(entry: dict) -> bool:
    """Whether codes can be made with its secret."""
    try:
        return bool(codes.totp(entry['authParams']).now())
    except (ValueError, TypeError, KeyError, AttributeError):
        return False


def summary(entry: dict) -> Json:
    """What may be shown: `labels`; `note`, which may have several lines; `created` (seconds since
    1970; None: unknown); `disabled`, since when (1.0: unknown; None: it is not).
    """
    labels, disabled = entry.get('labels'), entry.get('disabled')
    return {
        'labels': [printable(label) for label in labels] if isinstance(labels, list) else [],
        'note': _note(entry.get('note')),
        'created': number(entry.get('created')) or None,
        'disabled': (number(disabled) or 1.0) if disabled else None,
    }


def _note(value: object) -> str:
    lines = value[:NOTE].splitlines() if isinstance(value, str) else []
    return '\n'.join(map(printable, lines)).strip()


def sort_key(summary: Json) -> tuple:
    """To sort as people do: 'Kitchen 2' before 'kitchen 10'; those without a label come last."""
    label = ', '.join(summary['labels']).casefold()
    if not label.isascii():  # letters with an accent are with those without
        label = ''.join(c for c in normalize('NFKD', label) if not combining(c))
    texts = _NUMBERS.split(label)
    # A number has too many digits for `int` where somebody wanted it so.
    texts[1::2] = [(len(digits.lstrip('0')), digits.lstrip('0')) for digits in texts[1::2]]
    return not label, texts


def number(value: object, most: int = LATEST) -> float | None:
    """One that can be shown: neither negative, nor NaN, nor of 400 digits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < most else None


def text_in(value: object) -> str:
    """One that can be shown, of TEXT characters at most; '' where it is something else."""
    return printable(value[:TEXT]) if isinstance(value, str) else ''


def printable(value: object) -> str:
    """A text without characters that control a terminal or a page."""

    def is_harmless(c: str) -> bool:
        return c.isprintable() or c in JOINERS or category(c) == 'Zs'  # all kinds of spaces

    text = '' if isinstance(value, list | dict) else str(value)
    return text if text.isprintable() else ''.join(c if is_harmless(c) else '\ufffd' for c in text)
