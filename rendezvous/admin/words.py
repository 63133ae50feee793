"""What page and shell say of times, and the page of the certificate. No Flask here."""

import datetime
import time

from rendezvous.admin import entry_files as files
from rendezvous.store.options import MAKE_CERT, Options
from rendezvous.wire.programs import Mistake

ENDS = datetime.timedelta(days=30)  # Let's Encrypt renews that long before the end
UNITS = ('day', 86400), ('hour', 3600), ('minute', 60)


def ago(at: float) -> str:
    """How long ago that was, in seconds since 1970; a clock of a server may be ahead of ours."""
    seconds = time.time() - at
    for unit, size in UNITS:
        if seconds >= size:
            number = int(seconds // size)
            return f'{number} {unit}{"s" if number > 1 else ""} ago'
    return 'just now'


def utc(at: float) -> str:
    """For `<time datetime>`, and for who wants to know it exactly."""
    return f'{datetime.datetime.fromtimestamp(at, datetime.UTC):%Y-%m-%d %H:%M:%SZ}'


def lasting(seconds: float) -> str:
    """How long something took: 0.4 s, 3:05 min, 2:00 h."""
    if seconds < 60:
        return f'{seconds:.1f} s'
    minutes = int(seconds // 60)
    if minutes < 60:
        return f'{minutes}:{int(seconds % 60):02} min'
    return f'{minutes // 60}:{minutes % 60:02} h'


def certificate_notice(options: Options) -> str:
    """What clients will soon complain of, or do already, or ''."""
    if not options.key_file:
        return ''
    try:
        _, certificate = files.read_certificate(options)
    except Mistake as mistake:
        return str(mistake)
    end, now = certificate.not_valid_after_utc, datetime.datetime.now(datetime.UTC)
    if end - now > ENDS:
        return ''
    when = f'ends on {end:%Y-%m-%d}' if end > now else f'ended on {end:%Y-%m-%d}'
    own = f'{MAKE_CERT} --force makes a new one, which hidden servers and clients need too'
    how = own if certificate.issuer == certificate.subject else 'renew it'
    return f'The certificate {when}: {how}.'
