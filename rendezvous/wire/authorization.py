"""Whom an Authorization header names, by Digest or Basic: nobody checks the password."""

import re
from base64 import b64decode

from rendezvous.wire.codes import UUID
from rendezvous.wire.http_head import Refusal

# RFC 9110 section 11.2: auth-param = token BWS "=" BWS ( token / quoted-string ), in a list whose
# empty elements are ignored. Values without quotes may hold more than a token: some clients do.
_PARAMETER = re.compile(
    r"""[ \t,]* ([!#$%&'*+.^_`|~0-9A-Za-z-]+) [ \t]*=[ \t]*
        (?: "((?:[^"\\]++|\\.)*+)" | ([^\s",]+) ) [ \t]* (?:,[ \t,]*|$)""",
    re.X,
)
PARAMETERS = 100  # of a header; RFC 7616 knows a dozen
# What real clients leave out is quotes and commas. RFC 8187 section 3.2.1 has the other form.
_USER_NAME = re.compile(
    rf"""(?<![!#$%&'*+.^_`|~0-9a-z-]) username
        (?: \*[ \t]*=[ \t]*"?UTF-8'[a-z-]*' | [ \t]*=[ \t]*"? ) ({UUID.pattern}) (?![0-9a-z-])""",
    re.X | re.I | re.A,
)


def named(authorization: str) -> str | None:
    """The UUID in lower case, or None where it names none. Raises Refusal: it cannot be read."""
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
        if quoted and '\\' in quoted:  # a substitution costs more than the match
            quoted = re.sub(r'\\(.)', r'\1', quoted)
        found[match[1].lower()] = match[3] if quoted is None else quoted
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
