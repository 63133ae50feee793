"""Reads the head of a request from octets, by RFC 9112, strictly; writes a refusal as octets.

What is read here is passed on, and another parser will read it again. So nothing is corrected:
whatever two parsers could read differently is refused. A reader is fed octets as they come and
answers as early as it can. How the octets were split never changes the answer.
"""

import json
import re
from email.utils import formatdate
from http import HTTPStatus
from typing import NamedTuple

# Apache's limit is 8 KiB a line and 100 fields, nginx's 8 KiB a line and 32 KiB in all, Node.js's
# 16 KiB and 2,000 fields, uvicorn's 64 KiB. Ours is large because sites that share a name share
# their cookies, too.
REQUEST_LINE_BYTES = 16 * 1024
HEAD_BYTES = 64 * 1024
HEAD_FIELDS = 500

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110 section 5.6.2
# RFC 9112 section 3: request-line = method SP request-target SP HTTP-version (without "#" in the
# target: some parsers cut it off there, some do not)
_REQUEST_LINE = re.compile(rb'(%s) ([\x21\x22\x24-\x7e]+) (HTTP/[0-9]\.[0-9])' % _TOKEN)
# RFC 9112 section 5: field-line = field-name ":" OWS field-value OWS (no space before the colon;
# no obs-fold, since a line that starts with a space has no name)
_FIELD_LINE = re.compile(rb'(%s):(.*)' % _TOKEN)
# Never part of a line: a bare CR (RFC 9112 section 2.2), other controls (RFC 9110 section 5.5)
_FORBIDDEN = re.compile(rb'[\x00-\x08\x0a-\x1f\x7f]')
# RFC 9110 section 7.2: Host = uri-host [ ":" port ]
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|([A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(:[0-9]*)?")

JSON, HTML = 'application/json', 'text/html; charset=utf-8'  # of an answer

# After one of these the same request can never work.
_PERMANENT = {308, 400, 403, 407, 414, 431, 505}


class Refusal(Exception):
    """Ends a connection with this answer; raised anywhere between accept and rendezvous."""

    def __init__(self, status: int, diagnostic: str, *fields: str) -> None:
        super().__init__(status, diagnostic)
        self.status, self.diagnostic, self.fields = status, diagnostic, fields
        self.why = diagnostic  # for the log alone
        self.is_routine = False  # the log has it at debug level only
        self.page = b''  # for a browser, in place of the JSON
        self.without_body = False  # true for an answer to HEAD (RFC 9110 section 9.3.2)

    def octets(self) -> bytes:
        """The whole answer."""
        body = self.page or error_body(self.diagnostic, self.status in _PERMANENT)
        octets = response(
            self.status,
            *self.fields,
            f'Content-Type: {HTML if self.page else JSON}',
            'Connection: close',
            body=body,
        )
        return octets.removesuffix(body) if self.without_body else octets


def error_body(diagnostic: str, permanent: bool) -> bytes:
    """The body that node-rendezvous sent with each refusal."""
    return json.dumps({'error': {'permanent': permanent, 'diagnostic': diagnostic}}).encode()


def response(status: int, *fields: str, body: bytes) -> bytes:
    """A whole answer. It has a Date: hidden servers read the error of their clocks from it."""
    fields = f'Date: {formatdate(usegmt=True)}', *fields, f'Content-Length: {len(body)}'
    lines = [f'HTTP/1.1 {status} {HTTPStatus(status).phrase}', *fields, '', '']
    return '\r\n'.join(lines).encode('ascii') + body


class Field(NamedTuple):
    """A header field: the name in lower case, the value, and the line as it came."""

    name: str
    value: str
    line: bytes


class Head(NamedTuple):
    """The head of a request, checked. `line` and the fields' lines are the octets that came."""

    method: str
    target: str
    version: str
    line: bytes
    fields: tuple[Field, ...]
    by_name: dict[str, list[str]]  # the values of each field

    def octets(self, without: Field | None = None) -> bytes:
        """The head as it came, without the line of that field."""
        kept = (field.line for field in self.fields if field is not without)
        return b''.join([self.line, *kept, b'\r\n'])

    def values(self, name: str) -> list[str]:
        return self.by_name.get(name, [])

    def has_token(self, name: str, token: str) -> bool:
        """Whether the comma-separated field `name` lists `token` (case-insensitive)."""
        listed = ','.join(self.values(name)).lower().split(',')
        return token in (item.strip() for item in listed)

    @property
    def body_bytes(self) -> int | None:
        """How long the body is, or None if it is chunked (RFC 9112 section 6.3)."""
        if self.values('transfer-encoding'):
            return None
        return int((self.values('content-length') or ['0'])[0])


class HeadReader:
    """Reads one head from octets as they come. It looks at each octet once."""

    def __init__(self) -> None:
        self._octets = bytearray()
        self._line_start = 0
        self._searched = 0  # before this place no end of the current line was found
        self._request: tuple[str, str, str, bytes] | None = None
        self._fields: list[Field] = []
        self._by_name: dict[str, list[str]] = {}

    def feed(self, octets: bytes) -> tuple[Head, bytes] | None:
        """The head and the octets behind it, or None if more are needed. Raises Refusal."""
        self._octets += octets
        while (line := self._next_line()) is not None:
            if self._request is None:
                # RFC 9112 section 2.2: ignore an empty line before the request line (one alone)
                if line or self._line_start > 2:
                    self._request = _request_line(line)
            elif line:
                field = _field(line)
                self._fields.append(field)
                self._by_name.setdefault(field.name, []).append(field.value)
                if len(self._fields) > HEAD_FIELDS:
                    raise Refusal(431, f'the head has more than {HEAD_FIELDS} header fields')
            else:
                head = Head(*self._request, tuple(self._fields), self._by_name)
                _check(head)
                return head, bytes(self._octets[self._line_start :])
        return None

    def _next_line(self) -> bytes | None:
        """The next line without its CRLF, or None if its end has not come yet."""
        octets, start, searched = self._octets, self._line_start, self._searched
        end = octets.find(b'\r\n', searched)
        # Of a line that has not ended, the last octet may be a CR whose LF comes next.
        stop = end if end >= 0 else len(octets) - octets.endswith(b'\r')
        # At least the line's CRLF and the empty line are still to come.
        limit = max(0, HEAD_BYTES - start - 4) if self._request else REQUEST_LINE_BYTES
        if _FORBIDDEN.search(octets, searched, min(stop, start + limit)):
            raise Refusal(400, 'lines end with CRLF and hold no control characters')
        if stop - start > limit:
            if self._request:
                raise Refusal(431, f'the head is longer than {HEAD_BYTES} bytes')
            raise Refusal(414, f'the request line is longer than {REQUEST_LINE_BYTES} bytes')
        self._searched = stop
        if end < 0:
            return None
        self._line_start = self._searched = end + 2
        return bytes(octets[start:end])


def _request_line(line: bytes) -> tuple[str, str, str, bytes]:
    match = _REQUEST_LINE.fullmatch(line)
    if not match:
        raise Refusal(400, 'the request line is not: method, space, target, space, HTTP/1.1')
    method, target, version = (part.decode('ascii') for part in match.groups())
    if version not in ('HTTP/1.0', 'HTTP/1.1'):
        raise Refusal(505, 'only HTTP/1.0 and HTTP/1.1 are spoken here')
    return method, target, version, line + b'\r\n'


def _field(line: bytes) -> Field:
    match = _FIELD_LINE.fullmatch(line)
    if not match:
        raise Refusal(400, 'a header line is not: name, colon, value, all on one line')
    name, value = match.groups()
    value = value.strip(b' \t').decode('latin-1')
    return Field(name.decode('ascii').lower(), value, line + b'\r\n')


def _check(head: Head) -> None:
    """Refuses what parsers read differently (RFC 9112 sections 3.2, 6.1 and 6.3)."""
    hosts = head.values('host')
    optional = head.version == 'HTTP/1.0' or head.method == 'CONNECT'
    if len(hosts) > 1 or not (hosts or optional) or not all(map(HOST.fullmatch, hosts)):
        raise Refusal(400, 'there must be exactly one valid Host')
    lengths, codings = head.values('content-length'), head.values('transfer-encoding')
    if len(lengths) > 1 or not all(re.fullmatch('[0-9]{1,18}', each) for each in lengths):
        raise Refusal(400, 'there may be one Content-Length, a number of bytes')
    if codings and (lengths or head.version == 'HTTP/1.0'):
        raise Refusal(400, 'Transfer-Encoding goes with neither Content-Length nor HTTP/1.0')
    if codings and [each.lower() for each in codings] != ['chunked']:
        raise Refusal(400, 'the only Transfer-Encoding is chunked')
