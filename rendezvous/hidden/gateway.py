"""The gateway of --forwarded: reads each request of a mobile client, and writes it anew.

To the pipe it is the mobile client's connection. What the pipe reads from it are requests that were
checked, with fields that say who asks. What the pipe writes to it are the local server's answers:
they pass as they came, and are counted. So an Upgrade opens a tunnel only at the 101 that is its
own answer, and a refusal of ours never gets into the middle of an answer. A request that two
parsers could read differently is refused.

Two generators do the reading, each in a greenlet of its own; `yield from self._more()` in them
waits for more octets.
"""

import re
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import nullcontext, suppress
from functools import lru_cache, partial
from typing import Any, NamedTuple

import gevent
from gevent.event import Event

from rendezvous.wire.addresses import Peer
from rendezvous.wire.authorization import named
from rendezvous.wire.http_head import Head, HeadReader, Refusal
from rendezvous.wire.sockets import Ended, Socket, TLSSocket, take_turn

HEAD_SECONDS = 15  # from the first octet of a head to its end, as in the rendezvous server
TURN_SECONDS = 1  # for a refusal to wait until the answers before it have ended
MOST_DUE = 100  # requests without an answer; no client is known that sends so many ahead
DUE_SECONDS = 60  # for one of those answers, or that to an Upgrade, while the client sends more
PIECE_BYTES = 4096  # of requests are read at a time: what is behind a head is copied
CHUNK_LINE_BYTES = 1024  # with its extensions, which hardly anybody sends
ANSWER_HEAD_BYTES = 256 * 1024

# RFC 9112 section 7.1: chunk-size [ chunk-ext ] CRLF
_CHUNK = re.compile(rb'([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?\r\n')
# Of an answer; some servers end their lines with LF alone.
_HEAD_END = re.compile(rb'\n\r?\n')
_STATUS = re.compile(rb'[\r\n]*HTTP/1\.([01]) ([1-9][0-9][0-9])[ \r\n]')
_LENGTH = re.compile(rb'\ncontent-length:[ \t]*([^\r\n]*)', re.I)
_CODING = re.compile(rb'\ntransfer-encoding:(?:[^\r\n]*,)?[ \t]*([^\r\n, ]*)[ \t]*\r?\n', re.I)

# Fields that are not passed on: those of one connection alone, and those by which a local server
# learns from a proxy who asks, how and for what.
_DROPPED = re.compile(
    r"""connection | keep-alive | te | trailer | upgrade | http2-settings  # RFC 9110 section 7.6.1
    | proxy(-.*)?
    | (x-|cloudfront-)?forwarded.* | x-forward-for  # RFC 7239, and what was in use before
    | (x-)?(remote|original|rewrite|envoy|proxyuser|azure|ssl-client)-.*  # Remote-User
    | x-(accel|sendfile)-.*  # for a server in front: files to send, by a path
    | x-(host|http-host-override|scheme|url-scheme|proto|protocol|https|ssl|arr-ssl)
    | front-end-https""",
    re.X,
)
# So ends the name of a field that is dropped: X-Real-IP, True-Client-IP, CF-Connecting-IPv6
_ADDRESS = re.compile('(client)?ip(v[46])?')
# These are passed on, since they were checked. `Content_Length` was not.
_CHECKED = {'host', 'content-length', 'transfer-encoding'}
# PHP reads X_Forwarded_For and X.Forwarded.For as X-Forwarded-For, other CGI does, too.
_PLAIN = str.maketrans({chr(code): '-' for code in range(128) if not chr(code).isalnum()})
CACHED_CHARACTERS = 64  # of a name: strangers would have us keep longer ones


class Due(NamedTuple):
    """A request whose answer has not ended."""

    method: str
    is_upgrade: bool


class Forwarding(NamedTuple):
    """What --forwarded and --host ask for; an empty `host` leaves Host as it is."""

    uuid: str  # of this hidden server
    host: str

    def around(self, sock: TLSSocket, octets: bytes, visitor: Peer | None) -> 'Gateway':
        """The gateway for a visit; `octets` were read from `sock` already."""
        return Gateway(sock, octets, partial(self.rewritten, visitor))

    def rewritten(self, visitor: Peer | None, head: Head, is_upgrade: bool) -> bytes:
        """The head for the local server; `visitor` is None where the address is not known."""
        kept = [
            field.line
            for field in head.fields
            if not (_is_dropped(field.name) or self._is_ours(field.name, field.value))
        ]
        asked = [token.strip() for token in ','.join(head.values('connection')).lower().split(',')]
        known = ['close', 'keep-alive', *(['upgrade'] if is_upgrade else [])]
        listed = [token for token in known if token in asked]
        lines = [f'Host: {self.host}'] if self.host else []
        lines += [f'Connection: {", ".join(listed)}'] if listed else []
        lines += ['Upgrade: websocket'] if is_upgrade else []
        lines += _forwarded(visitor, _host(head))
        return b''.join([head.line, *kept, *(f'{line}\r\n'.encode() for line in lines), b'\r\n'])

    def _is_ours(self, name: str, value: str) -> bool:
        """Whether --host replaces this field, or it names this hidden server."""
        with suppress(Refusal):
            if name == 'authorization':
                return named(value) == self.uuid.lower()
        return name == 'host' and bool(self.host)


def _is_dropped(name: str) -> bool:
    """A request may have 500 names that nobody has seen before, or one of 60 KB."""
    return (_is_known if len(name) <= CACHED_CHARACTERS else _is_foreign)(name)


def _is_foreign(name: str) -> bool:
    plain = name.translate(_PLAIN)
    is_address = _ADDRESS.fullmatch(plain.rpartition('-')[2])
    return bool(is_address or _DROPPED.fullmatch(plain)) or (plain != name and plain in _CHECKED)


_is_known = lru_cache(1024)(_is_foreign)


def _host(head: Head) -> str:
    return (head.values('host') or [''])[0]  # HTTP/1.0 needs none


def _forwarded(visitor: Peer | None, host: str) -> list[str]:
    """The fields that we add: RFC 7239 section 4, and those that more servers know."""
    address = visitor.host if visitor else 'unknown'
    node = f'"[{address}]"' if ':' in address else address
    lines = [f'X-Forwarded-For: {address}'] if visitor else []
    lines += ['X-Forwarded-Proto: https']
    lines += [f'X-Forwarded-Host: {host}'] if host else []
    return [*lines, f'Forwarded: for={node};proto=https' + (f';host="{host}"' if host else '')]


class _Reader:
    """Reads octets as they come."""

    def __init__(self, octets: bytes = b'') -> None:
        self._octets, self._at = octets, 0

    def _more(self) -> Generator[Any, Any, None]:
        raise NotImplementedError

    def _forget(self) -> None:
        """Frees what has been read: no memory is used while nothing comes."""
        self._octets, self._at = self._octets[self._at :], 0

    @property
    def _is_empty(self) -> bool:
        return self._at == len(self._octets)

    def _take(self, most: int) -> Generator[Any, Any, bytes]:
        """Some octets, at least one."""
        if self._is_empty:
            yield from self._more()
        octets = self._octets[self._at : self._at + most]
        self._at += len(octets)
        return octets

    def _line(self, most: int) -> Generator[Any, Any, bytes]:
        """The next line with its LF. Raises ValueError if it is longer than `most` octets."""
        while not (end := self._octets.find(b'\n', self._at, self._at + most) + 1):
            if len(self._octets) - self._at >= most:
                raise ValueError
            yield from self._more()
        line, self._at = self._octets[self._at : end], end
        return line


class Answers(_Reader):
    """Counts the answers of a local server; it is trusted, so this is lenient."""

    def __init__(self) -> None:
        super().__init__()
        self.due: deque[Due] = deque()
        self.is_between = True  # no answer has begun that has not ended
        self.is_tunnel = False  # a 101 has opened one
        self.is_last = False  # this answer lasts as long as the connection, or cannot be counted
        self._reading = self._read()
        next(self._reading)

    def feed(self, octets: bytes) -> None:
        """May let other greenlets run."""
        self._reading.send(octets)

    def _more(self) -> Generator[None, bytes, None]:
        self._forget()
        self._octets += yield

    def _read(self) -> Generator[None, bytes, None]:
        with suppress(ValueError):
            while not (self.is_tunnel or self.is_last):
                self.is_between = self._is_empty
                if self.is_between:
                    yield from self._more()
                    self.is_between = False
                yield from self._answer()
        self.is_last = not self.is_tunnel
        self.due.clear()
        self._octets = b''
        while True:
            yield

    def _answer(self) -> Generator[None, bytes, None]:
        """One answer (RFC 9112 section 6.3). Raises ValueError if it cannot be counted."""
        head = yield from self._head()
        match = _STATUS.match(head)
        if not match or not self.due:
            raise ValueError
        (method, is_upgrade), status = self.due[0], int(match[2])
        lengths, codings = set(_LENGTH.findall(head)), _CODING.findall(head)
        if status == 101:
            self.is_tunnel = is_upgrade
            self.is_last = not is_upgrade
        elif status < 200:
            return  # the answer itself is still to come
        elif method == 'HEAD' or status in (204, 304):
            pass
        elif codings and codings[-1].lower() == b'chunked' and match[1] == b'1':
            yield from self._chunks()
        elif len(lengths) == 1 and not codings:
            yield from self._skip(int(lengths.pop()))
        else:
            self.is_last = True
        self.due.popleft()

    def _head(self) -> Generator[None, bytes, bytes]:
        while not (end := _HEAD_END.search(self._octets, self._at)):
            if len(self._octets) - self._at > ANSWER_HEAD_BYTES:
                raise ValueError
            yield from self._more()
        head, self._at = self._octets[self._at : end.end()], end.end()
        return head

    def _chunks(self) -> Generator[None, bytes, None]:
        while size := int((yield from self._line(ANSWER_HEAD_BYTES)).partition(b';')[0], 16):
            yield from self._skip(size)
            yield from self._line(2)
            take_turn()
        while (yield from self._line(ANSWER_HEAD_BYTES)).strip():
            pass  # a trailer

    def _skip(self, count: int) -> Generator[None, bytes, None]:
        while count > 0:
            if self._is_empty:
                yield from self._more()
            step = min(count, len(self._octets) - self._at)
            self._at += step
            count -= step


class Gateway(Socket, _Reader):
    """The connection of a mobile client, for a pipe that owns it as it owns a socket."""

    def __init__(self, sock: TLSSocket, octets: bytes, rewrite: Callable[[Head, bool], bytes]):
        """`rewrite`: gives the head for the local server, of a head that may be an Upgrade."""
        Socket.__init__(self, sock.raw)
        _Reader.__init__(self, octets)
        self._sock, self._rewrite = sock, rewrite
        self._host: str | None = None  # of the first request
        # For the local server; the pipe does not have it yet.
        self._written: list[bytes] = []
        self._is_in_body = self._is_sending = self._is_over = False
        self._had_head = False
        self._answers, self._progress = Answers(), Event()
        self._requests = self._read()

    def receive(self) -> bytes:
        """What goes to the local server; b'' if the mobile client has ended.

        Raises Refusal when it is to be sent as the last answer, OSError, and Ended.
        """
        return next(self._requests, b'')

    def receive_shared(self) -> memoryview:
        return memoryview(self.receive())

    def send(self, octets: bytes | memoryview) -> None:
        """Sends all of an answer's octets to the mobile client."""
        if self._is_over:
            raise Ended
        self._is_sending = True
        octets = bytes(octets)  # while the mobile client is slow, others use their buffer
        self._sock.send(octets)
        self._answers.feed(octets)
        self._is_sending = False
        self._progress.set()

    def _flush(self) -> Generator[bytes, None, None]:
        if self._written:
            written, self._written = b''.join(self._written), []
            yield written

    def _more(self, ends: float = 0) -> Generator[bytes, None, None]:
        """`ends`: time.monotonic() when the head is to be whole. Raises EOFError, Refusal."""
        yield from self._flush()
        self._forget()
        with _until(ends) if ends else nullcontext():
            octets = self._sock.receive()
        if not octets:
            raise EOFError
        self._octets += octets

    def _read(self) -> Generator[bytes, None, None]:
        """All that goes to the local server."""
        with suppress(EOFError):
            try:
                while not (self._answers.is_tunnel or self._answers.is_last):
                    yield from self._request()
            except Refusal:
                yield from self._flush()
                self._wait_for(self._may_refuse, TURN_SECONDS)
                if not self._answers.is_last:
                    self._is_over = True
                    raise
            while True:  # after an answer that lasts to the end no request is answered
                if self._answers.is_tunnel:
                    self._written.append(self._octets[self._at :])
                self._at = len(self._octets)
                yield from self._more()

    def _may_refuse(self) -> bool:
        """Whether the answers to earlier requests have ended, and no other one has begun."""
        answers = self._answers
        is_ours = answers.is_between and len(answers.due) <= self._is_in_body
        return answers.is_last or (is_ours and not self._is_sending)

    def _wait_for(self, is_true: Callable[[], bool], seconds: float) -> None:
        """Raises Ended after that time."""
        with gevent.Timeout(seconds, Ended):
            while not is_true():
                self._progress.clear()
                self._progress.wait()

    def _request(self) -> Generator[bytes, None, None]:
        """One request. Raises Refusal, EOFError."""
        head, due = (yield from self._head(HeadReader())), self._answers.due
        self._check(head)
        if len(due) >= MOST_DUE:
            yield from self._flush()
            self._wait_for(lambda: len(due) < MOST_DUE, DUE_SECONDS)
        if self._answers.is_last:
            return
        # Some local servers send a body behind the answer to HEAD, and it may look like a 101.
        self._had_head |= head.method == 'HEAD'
        is_upgrade, body_bytes = not self._had_head and _is_upgrade(head), head.body_bytes
        due.append(Due(head.method, is_upgrade))
        self._written.append(self._rewrite(head, is_upgrade))
        self._is_in_body = True
        if body_bytes is None:
            yield from self._chunks()
        else:
            yield from self._pass(body_bytes)
        self._is_in_body = False
        if is_upgrade:  # what comes next may be no HTTP: the answer tells
            if self._is_empty:
                yield from self._more()
            yield from self._flush()
            self._wait_for(lambda: not due, DUE_SECONDS)

    def _check(self, head: Head) -> None:
        """Refuses what servers read differently or take for a tunnel, and another server's name."""
        host = _host(head).lower()
        if self._host is None:
            self._host = host
        if head.method == 'CONNECT':
            raise Refusal(400, 'CONNECT is not passed on')
        if head.target[0] != '/' and (head.method, head.target) != ('OPTIONS', '*'):
            raise Refusal(400, 'the target must be a path')
        if host != self._host:  # RFC 9110 section 15.5.20
            refusal = Refusal(421, 'for another host make another connection')
            refusal.without_body = head.method == 'HEAD'
            raise refusal

    def _head(self, reader: HeadReader) -> Generator[bytes, None, Head]:
        ends = 0.0
        while True:
            if self._is_empty:
                yield from self._more(ends)
            take_turn()
            found = reader.feed((yield from self._take(PIECE_BYTES)))
            if found:
                head, rest = found
                self._at -= len(rest)
                return head
            ends = ends or time.monotonic() + HEAD_SECONDS

    def _pass(self, count: int) -> Generator[bytes, None, None]:
        while count:
            octets = yield from self._take(count)
            self._written.append(octets)
            count -= len(octets)

    def _chunks(self) -> Generator[bytes, None, None]:
        """A chunked body (RFC 9112 section 7.1), without extensions and trailers."""
        while size := (yield from self._chunk_size()):
            self._written.append(b'%x\r\n' % size)
            yield from self._pass(size)
            yield from self._end_of_chunk()
            take_turn()
        trailers = HeadReader()  # they have the form of a head's fields
        trailers.feed(b'GET / HTTP/1.0\r\n')
        yield from self._head(trailers)
        self._written.append(b'0\r\n\r\n')

    def _chunk_size(self) -> Generator[bytes, None, int]:
        with suppress(ValueError):
            match = _CHUNK.fullmatch((yield from self._line(CHUNK_LINE_BYTES)))
            if match:
                return int(match[1], 16)
        raise Refusal(400, 'the size of a chunk cannot be read')

    def _end_of_chunk(self) -> Generator[bytes, None, None]:
        with suppress(ValueError):
            if (yield from self._line(2)) == b'\r\n':
                self._written.append(b'\r\n')
                return
        raise Refusal(400, 'a chunk is longer or shorter than its size')


def _until(ends: float) -> gevent.Timeout:
    """The time limit of a head."""
    late = Refusal(408, f'a head must be complete within {HEAD_SECONDS} seconds')
    return gevent.Timeout(max(0, ends - time.monotonic()), late)


def _is_upgrade(head: Head) -> bool:
    """Whether it asks for a WebSocket. What else Upgrade may ask for is not passed on."""
    return (
        [value.lower() for value in head.values('upgrade')] == ['websocket']
        and (head.method, head.version, head.body_bytes) == ('GET', 'HTTP/1.1', 0)
        and head.has_token('connection', 'upgrade')
    )
