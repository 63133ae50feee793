"""Whom a head names: functions of their arguments.

Three names for a hidden server: the target of its own CONNECT, and on the mobile client's side an
Authorization header (Digest or Basic, nobody checks the password) or `rendezvous=` in the target.
"""

import re
import secrets
from base64 import b64decode
from urllib.parse import unquote, unquote_plus

from rendezvous.wire.codes import UUID
from rendezvous.wire.http_head import Head, Refusal

# A short code, or the whole HMAC of sha1, sha256 or sha512. Of 40 decimal digits it may be, too.
_CODE = re.compile('[0-9]{6,8}|[0-9a-f]{40}|[0-9a-f]{64}|[0-9a-f]{128}', re.A)

# RFC 9110 section 11.2: auth-param = token BWS "=" BWS ( token / quoted-string ), in a list whose
# empty elements are ignored. Values without quotes may hold more than a token: some clients do.
_PARAMETER = re.compile(
    r"""[ \t,]* ([!#$%&'*+.^_`|~0-9A-Za-z-]+) [ \t]*=[ \t]*
        (?: "((?:[^"\\]|\\.)*)" | ([^\s",]+) ) [ \t]* (?:,[ \t,]*|$)""",
    re.X,
)
PARAMETERS = 100  # of a header; RFC 7616 knows a dozen
# What real clients leave out is quotes and commas. RFC 8187 section 3.2.1 has the other form.
_USER_NAME = re.compile(
    rf"""(?<![!#$%&'*+.^_`|~0-9a-z-]) username
        (?: \*[ \t]*=[ \t]*"?UTF-8'[a-z-]*' | [ \t]*=[ \t]*"? ) ({UUID.pattern}) (?![0-9a-z-])""",
    re.X | re.I | re.A,
)


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


def wanted(head: Head) -> tuple[str | None, bytes]:
    """Whom a mobile client wants, as a UUID in lower case, and the head's octets to pass on to it.

    None where the request names nobody. Raises Refusal where it cannot be told.
    """
    fields = [field for field in head.fields if field.name == 'authorization']
    if len(fields) > 1:
        raise Refusal(400, 'there may be one Authorization header')
    named = refusal = None
    try:
        named = _named(fields[0].value) if fields else None
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


def _named(authorization: str) -> str | None:
    scheme, _, rest = authorization.partition(' ')
    if scheme.lower() == 'digest':
        user = _digest_user(rest)
    elif scheme.lower() == 'basic':
        user = _basic_user(rest)
    else:
        user = ''
    user = user.strip(' ')  # keyboards of phones like to add a space
    return user.lower() if UUID.fullmatch(user) else None


def _digest_user(text: str) -> str:
    """The user name; of one that is a UUID it is enough that no other one is. Raises Refusal."""
    uuids = {match[1].lower() for match in _USER_NAME.finditer(text)}
    try:
        parameters = _digest_parameters(text)
        if 'username*' not in parameters:
            return parameters.get('username', '')
    except Refusal:
        if len(uuids) != 1:
            raise
    return uuids.pop() if len(uuids) == 1 else ''


def _digest_parameters(text: str) -> dict[str, str]:
    """RFC 7616 section 3.4, names in lower case. Raises Refusal: unparsable, or one came twice."""
    found: dict[str, str] = {}
    position = 0
    while position < len(text):
        match = _PARAMETER.match(text, position)
        if not match or match[1].lower() in found or len(found) == PARAMETERS:
            raise Refusal(400, 'the Digest parameters cannot be read')
        quoted = match[2]
        found[match[1].lower()] = match[3] if quoted is None else re.sub(r'\\(.)', r'\1', quoted)
        position = match.end()
    if not found:
        raise Refusal(400, 'there are no Digest parameters')
    if 'username' in found and 'username*' in found:  # section 3.4: must be treated as an error
        raise Refusal(400, 'the Digest parameters hold two user names')
    return found


def _basic_user(text: str) -> str:
    """RFC 7617 section 2: user-id ":" password, in base64. Raises Refusal."""
    try:
        user, colon, _ = b64decode(text.strip(), validate=True).partition(b':')
    except ValueError:
        colon = b''
    if not colon:
        raise Refusal(400, 'the Basic credentials cannot be read')
    return user.decode('latin-1')


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
