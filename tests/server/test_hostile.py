r"""Hostile octets on real connections: a file a case in `tests/hostile/`.

The first line of a file is what is expected:

    400 a sentence     this status and a diagnostic that starts so, and nothing more is answered
    401 and open       the challenge, and the next request on the connection is in step
    401 and closed     the challenge, and nothing more is answered
    200 and silent     it is a registration; with octets behind it, 409
    forwarded          what was sent, and what comes behind it, arrives at the hidden server
    closed             not a word of HTTP

The other lines are the octets. Their own ends do not count; `\r`, `\n`, `\t`, `\0`, `\x1b`, `\\`
are one octet each, `{3000 ab}` is `ab` 3000 times, `{code}` the code of this moment. A line that
starts with `-` is sent without the `-`, and does not arrive. Under `without-tls` the client speaks
no TLS though the server does; under `plain` the server speaks none. Names are those of DOMAIN.
"""

import json
import re
import socket
import ssl
from itertools import chain
from pathlib import Path

import pytest
from conftest import OK, Peer, code, get
from gevent.server import StreamServer

from rendezvous.store import options as local
from rendezvous.store.entries import Entries, StoreDown

UUID = '7d4e1a52-3c0b-4f6e-9a81-52c60b8f1d27'  # in the files; ffffffff-… is nobody's
DOMAIN = 'names.example'
FILES = sorted(Path(__file__).with_name('hostile').rglob('*.http'))
REQUEST_BEHIND = get(UUID, '/behind') + b'\0\n\xff'
PROBE = b'X / HTTP/9.9\r\n\r\n'  # its answer can be no other's: 505
BEHIND = {'401 and open': PROBE, 'closed': b'a'}  # which does not end what was cut short
PERMANENT = {308, 400, 403, 407, 414, 431, 505}  # the same again can never work
FIELDS = {308: 'Location', 401: 'WWW-Authenticate', 407: 'Proxy-Authenticate', 503: 'Retry-After'}


def pieces(text: str, now: str) -> list[bytes]:
    """The octets of a line, one by one, but `{3000 ab}` as one piece."""
    found = []
    for match in re.finditer(r'\{(\d+) ([^}]*)\}|\\x..|\\.|.', text.replace('{code}', now)):
        if match[1]:
            found.append(int(match[1]) * b''.join(pieces(match[2], now)))
        else:
            found.append(match[0].encode().decode('unicode_escape').encode('latin-1'))
    return found


class Case:
    """A file, read at a moment when the code is `now`."""

    def __init__(self, file: Path, now: str):
        self.expected, *lines = file.read_text('ascii').splitlines()
        sent = [pieces(line.removeprefix('-'), now) for line in lines]
        self.sent = list(chain(*sent))
        kept = [each for each, line in zip(sent, lines, strict=True) if line[:1] != '-']
        self.arrives = b''.join(chain(*kept))


class Story:
    """A hidden server waits, and one client sends a case."""

    def __init__(self, case: Case, hidden: Peer, client: Peer, behind: bytes):
        self.case, self.hidden, self.client, self.behind = case, hidden, client, behind

    def goes_as_expected(self) -> None:
        kind, _, rest = self.case.expected.partition(' ')
        if kind == 'forwarded':
            self.is_forwarded()
        elif kind == 'closed':
            self.is_closed()
        elif rest == 'and silent' and self.behind:
            self.is_refused(409, 'send nothing behind the CONNECT')
        elif rest == 'and silent':
            self.is_registered()
        elif rest in ('and open', 'and closed'):
            self.is_asked(rest == 'and open')
        else:
            self.is_refused(int(kind), rest)

    def is_forwarded(self) -> None:
        expected = self.case.arrives + self.behind
        assert self.hidden.receive(len(expected)) == expected
        self.hidden.send(b'the answer')
        assert self.client.receive(10) == b'the answer'
        assert is_silent(self.hidden)

    def is_closed(self) -> None:
        self.client.shut_sending()
        assert self.client.rest()[:2] in (b'', b'\x15\x03')  # a TLS alert
        assert is_silent(self.hidden)

    def is_registered(self) -> None:
        assert self.client.receive(len(OK)) == OK
        assert is_silent(self.client)

    def is_asked(self, stays: bool) -> None:
        method = b''.join(self.case.sent[:5]).decode('latin-1').split()[0]
        answer = self.client.answer(to=method)
        assert answer.status == 401
        challenge = answer.fields.pop('WWW-Authenticate')
        assert challenge.startswith('Digest realm="rendezvous", ')
        assert challenge.endswith('", Basic realm="rendezvous"')
        assert b'the user name is the UUID' in answer.body or method == 'HEAD'
        closes = {'Connection'} if not stays else set()
        assert set(answer.fields) == {'Date', 'Content-Type', 'Content-Length'} | closes
        if stays:
            self.client.send(b'' if self.behind else PROBE)
            assert self.client.answer().status == 505
        assert self.client.rest() == b''
        assert is_silent(self.hidden)

    def is_refused(self, status: int, diagnostic: str) -> None:
        answer = self.client.answer()
        assert answer.status == status
        error = json.loads(answer.body)['error']
        assert error['diagnostic'].startswith(diagnostic)
        assert error['permanent'] is (status in PERMANENT)
        assert UUID not in str(answer)
        fields = {'Date', 'Content-Type', 'Content-Length', 'Connection', FIELDS.get(status)}
        assert set(answer.fields) == fields - {None}
        assert self.client.rest() == b''
        assert is_silent(self.hidden)


def is_silent(peer: Peer) -> bool:
    """Whether nothing has come, and not the end either."""
    peer.sock.settimeout(0)
    try:
        return not peer._octets and peer.sock.recv(1) is None
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    finally:
        peer.sock.settimeout(None)


@pytest.fixture
def known(entries):
    """The UUID in the files has an entry."""
    entries.add(UUID, ['hostile'])
    yield
    entries.delete(UUID)


WAYS = 'whole', 'octet by octet', 'with octets behind'


@pytest.mark.parametrize('file', FILES, ids=lambda file: f'{file.parent.name}/{file.stem}')
def test_hostile_octets(file, known, start, register, connect, entries, caplog):
    caplog.set_level('INFO')
    plain = file.parent.name == 'plain'
    more = {'key_file': None} if plain else {}
    server = start(wrong_codes_per_address=0, names_domain=DOMAIN, **more)
    for way in WAYS:
        case = Case(file, code(entries, UUID))
        if way == WAYS[0] or case.expected == 'forwarded':
            hidden = register(server, UUID)
        if file.parent.name == 'without-tls':
            client = Peer(socket.create_connection(('127.0.0.1', server.port)))
        else:
            client = connect(server)
        behind = BEHIND.get(case.expected, REQUEST_BEHIND) if way == WAYS[2] else b''
        for each in case.sent if way == WAYS[1] else [b''.join([*case.sent, behind])]:
            client.send(each)
        try:
            Story(case, hidden, client, behind).goes_as_expected()
        except AssertionError as error:
            raise AssertionError(f'{way}: {case.expected}') from error
        client.close()
    for record in caplog.records:
        assert record.getMessage().isprintable()
        assert not record.exc_info


ERRORS = [
    '-ERR {}',
    '-WRONGPASS {}',
    '-NOAUTH {}',
    '-LOADING {}',
    '{}',
    '$-9{}',
    ':{}',
]


@pytest.mark.parametrize('error', ERRORS)
def test_what_redis_says_is_one_harmless_line(error):
    """Whatever listens there may not be Redis."""

    def lie(sock, _) -> None:
        said = error.format('\x1b[2J\x07\r2026-11-23 10:00:00,000 INFO forged\x85\u2028').encode()
        while octets := sock.recv(65536):
            sock.sendall((said + b'\r\n') * len(re.findall(rb'^\*', octets, re.M)))

    liar = StreamServer(('127.0.0.1', 0), lie)
    liar.start()
    try:
        entries = Entries(
            local.DEFAULTS | {'redis_host': '127.0.0.1', 'redis_port': liar.server_port}
        )
        with pytest.raises(StoreDown) as raised:
            entries.get(UUID)
        assert re.fullmatch('[ -~]+', str(raised.value))
    finally:
        entries.close()
        liar.stop()
