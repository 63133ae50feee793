"""An entry as Redis has it: a JSON object, written by us, by node-rendezvous or by anybody."""

import json
from unicodedata import category
from urllib.parse import quote, urlencode

import pyotp

from rendezvous.wire import codes

DIGITS = 8  # of a code; programs for node-rendezvous know only 6
SECRET_CHARACTERS = 64  # of base32: 40 octets, as node-rendezvous made them
JOINERS = '\u200c\u200d'  # of letters, in Persian, and of pictures
CHARACTERS = 64 * 1024  # of an entry: hundreds of times what we write
LEVELS = 20  # of lists and objects in each other; ours has two
LATEST = 253402300800  # the year 10000, in seconds since 1970: no calendar goes on


def read(value: str | bytes | None) -> dict | None:
    """The entry; what is no JSON object is none, nor what is too large or too deep for one."""
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
    """Whether there is more in it than JSON or `repr` go down to, when it is written again."""
    layer = [entry]
    for _ in range(LEVELS):
        inner = [each.values() if isinstance(each, dict) else each for each in layer]
        layer = [each for some in inner for each in some if isinstance(each, dict | list)]
    return bool(layer)


def secret(uuid: str, digits: int, issuer: str) -> dict:
    """What an entry holds of a new secret."""
    base32 = pyotp.random_base32(SECRET_CHARACTERS)
    query = urlencode({'secret': base32, 'issuer': issuer, 'digits': digits})
    return {
        'authURL': f'otpauth://totp/{quote(issuer)}:{uuid}?{query}',
        'authParams': {
            'protocol': 'totp',
            'algorithm': 'sha1',
            'length': 40,  # of the secret, in octets
            'step': 30,
            'digits': digits,
            'base32': base32,
            'name': uuid,
            'issuer': issuer,
        },
    }


def digits(entry: dict) -> int:
    """Of its codes: 6 where it does not say it, as node-rendezvous did not."""
    parameters = entry.get('authParams')
    found = parameters.get('digits', 6) if isinstance(parameters, dict) else DIGITS
    return found if type(found) is int and found in (6, 7, 8) else DIGITS


def is_sound(entry: dict) -> bool:
    """Whether a code can be made with it."""
    try:
        return bool(codes.totp(entry['authParams']).now())
    except (ValueError, TypeError, KeyError, AttributeError):
        return False


def summary(entry: dict) -> dict:
    """What can be shown: `labels`, `created` (seconds since 1970; None: unknown), `disabled`."""
    labels, created = entry.get('labels'), entry.get('created')
    known = type(created) in (int, float) and 0 < created < LATEST
    return {
        'labels': [printable(label) for label in labels] if isinstance(labels, list) else [],
        'created': float(created) if known else None,
        'disabled': bool(entry.get('disabled')),
    }


def printable(value) -> str:
    """A text that no terminal and no page takes for more than text."""

    def is_harmless(c: str) -> bool:
        return c.isprintable() or c in JOINERS or category(c) == 'Zs'  # all kinds of spaces

    text = '' if isinstance(value, list | dict) else str(value)
    return text if text.isprintable() else ''.join(c if is_harmless(c) else '\ufffd' for c in text)
