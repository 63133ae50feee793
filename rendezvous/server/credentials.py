"""Whom a head names: functions of their arguments.

A hidden server names itself in the target of its own CONNECT. A mobile client names it by the host
that it asks, by an Authorization header (Digest or Basic, nobody checks the password) or by
`rendezvous=` in the target.
"""

import re
import secrets
from urllib.parse import unquote, unquote_plus

from rendezvous.wire import authorization
from rendezvous.wire.codes import UUID
from rendezvous.wire.http_head import Head, Refusal

# A short code, or the whole HMAC of sha1, sha256 or sha512. Of 40 decimal digits it may be, too.
_CODE = re.compile('[0-9]{6,8}|[0-9a-f]{40}|[0-9a-f]{64}|[0-9a-f]{128}', re.A)

# RFC 3986 section 3: what stands between "//" and the path or the query of an absolute URI
_AUTHORITY = re.compile('[a-z][a-z0-9+.-]*://([^/?]*)', re.I | re.A)


def registration(target: str) -> tuple[str, str]:
    """The UUID and the code in the target of a CONNECT, `uuid:ID?response=TKN`. Raises Refusal."""
    scheme, _, rest = target.partition(':')
    if scheme.lower() != 'uuid':
        raise Refusal(403, 'CONNECT is only for uuid:ID?response=TKN')
    uuid, _, query = rest.partition('?')
    codes = _values(query, 'response')
    if not codes:
        field = 'Proxy-Authenticate: TOTP realm="rendezvous"'
        raise Refusal(407, 'the code is missing: uuid:ID?response=TKN', field)
    if not UUID.fullmatch(uuid) or len(codes) > 1 or not _CODE.fullmatch(codes[0]):
        raise Refusal(400, 'ID must be a UUID, and TKN a code of 6 to 8 digits or a long code')
    return uuid.lower(), codes[0]


def name_of_host(head: Head, domain: str) -> str:
    """NAME in lower case, where the host of a request is NAME.domain; '' where it is another one.

    Any port will do, and a dot at the end, as in the DNS. A deeper name is none: no certificate for
    *.domain is good for it.
    """
    # RFC 9112 section 3.2.2: where the target holds a host, that of the field MUST be ignored.
    absolute = _AUTHORITY.match(head.target)
    host = absolute[1].rpartition('@')[2] if absolute else ''.join(head.values('host'))
    name, _, rest = host.partition(':')[0].lower().removesuffix('.').partition('.')
    return name if rest == domain else ''


def wanted(head: Head) -> tuple[str | None, bytes]:
    """Whom a mobile client wants, as a UUID in lower case, and the head's octets to pass on to it.

    None where the request names nobody. Raises Refusal where it cannot be told.
    """
    fields = [field for field in head.fields if field.name == 'authorization']
    if len(fields) > 1:
        raise Refusal(400, 'there may be one Authorization header')
    named = refusal = None
    try:
        named = authorization.named(fields[0].value) if fields else None
    except Refusal as error:
        refusal = error
    if named:
        return named, head.octets(without=fields[0])
    queried = _queried(head.target)
    if refusal and not queried:  # beside rendezvous= the header is the hidden server's own
        raise refusal
    return queried, head.octets()


def challenge() -> list[str]:
    """The header fields that ask for a UUID; nobody checks what else comes back."""
    nonce, opaque = secrets.token_hex(16), secrets.token_hex(16)
    return [
        'WWW-Authenticate: Digest realm="rendezvous", qop="auth, auth-int", '
        f'nonce="{nonce}", opaque="{opaque}"',
        'WWW-Authenticate: Basic realm="rendezvous"',  # for the many that know no Digest
    ]


def _queried(target: str) -> str | None:
    """The UUID of `rendezvous=` in the query; raises Refusal where there are two."""
    values = _values(target.partition('?')[2], 'rendezvous')
    uuids = {value.lower() for value in values if UUID.fullmatch(value)}
    if len(uuids) > 1:
        raise Refusal(400, 'rendezvous= names two hidden servers')
    return uuids.pop() if uuids else None


def _values(query: str, name: str) -> list[str]:
    """All that stands there as `name=`; there may be thousands of others."""
    pairs = (pair.partition('=') for pair in query.split('&') if pair)
    return [
        unquote_plus(value)
        for key, _, value in pairs
        if key == name or ('%' in key and unquote(key) == name)
    ]
