"""Who attacks, and who stands by: each a process of its own, so that none waits for another.

    python attack.py NAME JSON

NAME is a function below, JSON its arguments. It begins at the first line of its standard input,
prints one line of JSON when it is through, and keeps its connections until that input ends. Nothing
here is patched: there are threads, and octets that are made beforehand. TLS records are made by
hand: no library sends KeyUpdates, or records of one octet, as fast as a server reads them.
"""

import hmac
import json
import os
import re
import resource
import socket
import ssl
import statistics
import sys
import tempfile
import threading
import time
import uuid as uuids
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pyotp
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SECONDS = 4  # of a stream, if the server takes it for so long
PATIENCE_SECONDS = 30  # of everybody who waits for an answer
RECORDS = 300_000  # of one octet
KEY_UPDATES = 50_000
DATA, ALERT, HANDSHAKE = 23, 21, 22  # kinds of records (RFC 8446 section 5.1)
MANY = b'GET / HTTP/1.1\r\nHost: x\r\n\r\n' * 500
held: list = []  # connections, until the end


def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


CONTEXT = client_context()


def dial(to: dict, receive_bytes: int = 0) -> socket.socket:
    """A connection, less TLS; `to` says where to, and from which address."""
    sock = socket.socket()
    if receive_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.settimeout(PATIENCE_SECONDS)
    try:
        sock.bind((to['source'], 0))
        sock.connect(('127.0.0.1', to['port']))
    except OSError:
        sock.close()
        raise
    return sock


def connect(to: dict, **more) -> socket.socket:
    """A connection, with TLS unless `to` says otherwise."""
    sock = dial(to, **more)
    return CONTEXT.wrap_socket(sock) if to.get('tls', True) else sock


def request(to: dict, *fields: str, method: str = 'GET', path: str = '', uuid: str = '') -> bytes:
    """A head that names the hidden server of `to`, or another one."""
    named = f'Authorization: Digest username="{uuid or to.get("uuid")}"'
    line = f'{method} {path or to.get("path", "/")} HTTP/1.1'
    host = f'Host: 127.0.0.1:{to["port"]}'
    return '\r\n'.join([line, host, named, *fields, '', '']).encode()


def answered(sock) -> int:
    """The status of an answer, all of which is read."""
    octets = b''
    while b'\r\n\r\n' not in octets:
        octets += (more := sock.recv(65536))
        if not more:
            raise ConnectionError('no answer' if not octets else 'cut off')
    head, _, body = octets.partition(b'\r\n\r\n')
    length = re.search(rb'\r\ncontent-length: *(\d+)', head, re.I)
    left = (int(length[1]) if length else 0) - len(body)
    while left > 0 and (more := sock.recv(65536)):
        left -= len(more)
    return int(head.split()[1])


def ask(to: dict, sock, **more) -> int:
    sock.sendall(request(to, **more))
    return answered(sock)


def connect_request(to: dict) -> bytes:
    """The CONNECT of the hidden server of which `to` has the secret."""
    code = pyotp.TOTP(to['base32'], digits=8).now()
    return f'CONNECT uuid:{to["other"]}?response={code} HTTP/1.1\r\nHost: x\r\n\r\n'.encode()


# Those who stand by


def bystander(to: dict, ways: list[str]) -> dict:
    """Asks all the while, in each of these ways, until standard input ends: how long it took."""
    over, seen = threading.Event(), {way: [] for way in ways}
    threads = [threading.Thread(target=again, args=(to, way, over, seen[way])) for way in ways]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join()
    return {way: told(asked) for way, asked in seen.items()}


def again(to: dict, way: str, over: threading.Event, seen: list) -> None:
    one = WAYS[way](to)
    while not over.is_set():
        began = time.monotonic()
        try:
            saw = one()
        except OSError as error:
            saw = type(error).__name__
        seen.append((time.monotonic() - began, saw))
        over.wait(0.05)


def told(asked: list) -> dict:
    seconds = [each for each, _ in asked]
    bad = Counter(str(saw) for _, saw in asked if saw != 200)
    median = statistics.median(seconds)
    return {'worst': max(seconds), 'median': median, 'bad': bad, 'count': len(asked)}


def on_new_ones(to: dict):
    def one() -> int:
        with connect(to) as sock:
            return ask(to, sock)

    return one


def on_a_kept_one(to: dict):
    kept: list = []

    def one() -> int:
        if not kept:
            kept.append(connect(to))
        try:
            return ask(to, kept[0])
        except OSError:
            kept.pop().close()
            raise

    return one


def registering(to: dict):
    def one() -> int:
        with connect(to) as sock:
            sock.sendall(connect_request(to))
            return answered(sock)

    return one


WAYS = {'new': on_new_ones, 'kept': on_a_kept_one, 'registers': registering}


# TLS 1.3 by hand


class Records:
    """Makes the records that one side sends after the handshake (RFC 8446 sections 5.2, 7.2)."""

    def __init__(self, secret: bytes):
        self._begin(secret)

    def _begin(self, secret: bytes) -> None:
        self._secret, self._count = secret, 0
        self._aead = AESGCM(expanded(secret, b'key', 32 if len(secret) == 48 else 16))
        self._iv = int.from_bytes(expanded(secret, b'iv', 12))

    def __call__(self, octets: bytes, kind: int = DATA) -> bytes:
        nonce = (self._iv ^ self._count).to_bytes(12)
        self._count += 1
        head = b'\x17\x03\x03' + (len(octets) + 17).to_bytes(2)
        return head + self._aead.encrypt(nonce, octets + bytes([kind]), head)

    def key_update(self, asks: bool) -> bytes:
        octets = self(b'\x18\0\0\1' + bytes([asks]), HANDSHAKE)
        self._begin(expanded(self._secret, b'traffic upd', len(self._secret)))
        return octets

    def each(self, octets: bytes) -> bytes:
        """A record for each octet."""
        return b''.join(self(octets[at : at + 1]) for at in range(len(octets)))


def expanded(secret: bytes, label: bytes, length: int) -> bytes:
    """HKDF-Expand-Label (RFC 8446 section 7.1), for SHA-384 or SHA-256, as long as the secret."""
    info = length.to_bytes(2) + bytes([len(label) + 6]) + b'tls13 ' + label + b'\0\1'
    return hmac.digest(secret, info, f'sha{8 * len(secret)}')[:length]


def shaken(sock, context: ssl.SSLContext, server_side: bool = False):
    """The connection after the handshake, and what makes the records for it."""
    with tempfile.NamedTemporaryFile() as file:
        context.keylog_filename = file.name
        tls = context.wrap_socket(sock, server_side=server_side)
        log = Path(file.name).read_text()
    assert tls.cipher()[0] in ('TLS_AES_128_GCM_SHA256', 'TLS_AES_256_GCM_SHA384'), tls.cipher()
    side = 'SERVER' if server_side else 'CLIENT'
    secret = re.search(rf'{side}_TRAFFIC_SECRET_0 \w+ (\w+)', log)[1]
    raw = socket.socket(fileno=os.dup(tls.fileno()))
    raw.settimeout(PATIENCE_SECONDS)
    held.extend((raw, tls))  # a close_notify of `tls` would be out of step: it is never closed
    return raw, Records(bytes.fromhex(secret))


def opened(to: dict):
    """A connection whose records are made by hand, and the first of them read off."""
    raw, records = shaken(dial(to), client_context())
    read_off(raw)
    return raw, records


def read_off(raw) -> None:
    def read() -> None:
        with suppress(OSError):
            while raw.recv(1 << 20):
                pass

    threading.Thread(target=read, daemon=True).start()


def blast(raw, chunks) -> dict:
    """Sends them, for as long as a stream takes."""
    began, sent, ended = time.monotonic(), 0, ''
    raw.settimeout(0.2)
    try:
        for chunk in chunks:
            view = memoryview(chunk)
            while view and time.monotonic() - began < SECONDS:
                with suppress(TimeoutError):
                    count = raw.send(view[:65536])
                    view, sent = view[count:], sent + count
            if view:
                break
    except OSError:
        ended = 'the server ended it'
    return {'kb': sent // 1000, 'seconds': round(time.monotonic() - began, 1), 'ended': ended}


# The streams


def requests(to: dict) -> dict:
    """Without Authorization, pipelined; the answers are read off."""
    raw, records = opened(to)
    return blast(raw, iter(lambda: records(MANY), b''))


def heads(to: dict, count: int, size: int) -> dict:
    """On so many connections a head each, in records of one octet."""
    head = b'GET / HTTP/1.1\r\nHost: x\r\nX: '
    head += b'x' * (size - len(head) - 4) + b'\r\n\r\n'
    made = [(raw, [records.each(head)]) for raw, records in map(opened, [to] * count)]
    with ThreadPoolExecutor(count) as pool:
        return [*pool.map(lambda each: blast(*each), made)].pop()


def bodies(to: dict, size: int) -> dict:
    """Behind heads without Authorization, in records of one octet."""
    raw, records = opened(to)
    head = f'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n'.encode()
    each = [records(head) + records.each(bytes(size)) for _ in range(RECORDS // size)]
    return blast(raw, each)


def upload(to: dict) -> dict:
    """Its octets one a record, to a local server that reads them all."""
    raw, records = opened(to)
    return blast(raw, [records(long_upload(to)), records.each(bytes(RECORDS))])


def long_upload(to: dict) -> bytes:
    return request(to, f'Content-Length: {10**9}', method='POST', path='/upload')


def pipe_up(to: dict) -> dict:
    """To a hidden server that reads it off."""
    hidden = far_end(to)
    raw, records = opened(to)
    raw.sendall(records(request(to, uuid=to['other'])))
    read_off(hidden()[0])
    return blast(raw, [records.each(bytes(RECORDS))])


def pipe_down(to: dict) -> dict:
    """From a hidden server, to a mobile client that reads it off."""
    hidden = far_end(to)
    raw, records = opened(to)
    raw.sendall(records(request(to, uuid=to['other'])))
    raw, records = hidden()
    return blast(raw, [records.each(bytes(RECORDS))])


def far_end(to: dict):
    """What gives the hidden server's connection, once a request is on its way to it."""
    if 'base32' in to:
        raw, records = shaken(dial(to | {'source': to['hidden']}), client_context())
        raw.sendall(records(connect_request(to)))
        raw.recv(65536)  # the 200
        return lambda: (raw, records)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(to['pem'])
    context.num_tickets = 0
    listener = socket.create_server(('127.0.0.1', to['other']))
    listener.settimeout(PATIENCE_SECONDS)
    held.append(listener)

    def accept():
        return shaken(listener.accept()[0], context, server_side=True)

    return ThreadPoolExecutor(1).submit(accept).result


def key_updates(to: dict, asks: bool) -> dict:
    raw, records = opened(to)
    return blast(raw, [b''.join(records.key_update(asks) for _ in range(KEY_UPDATES))])


def empty_records(to: dict) -> dict:
    """Thirty behind each octet of an upload: OpenSSL ends a connection at 32 in a row."""
    raw, records = opened(to)
    head = [records(long_upload(to))]
    each = [records(b'x') + b''.join(records(b'') for _ in range(30)) for _ in range(RECORDS // 31)]
    return blast(raw, head + each)


def alerts(to: dict) -> dict:
    """A warning (user_canceled) behind each: OpenSSL ends a connection at 5 in a row."""
    raw, records = opened(to)
    head = [records(long_upload(to))]
    each = [records(b'x') + records(b'\1\x5a', ALERT) for _ in range(RECORDS // 2)]
    return blast(raw, head + each)


# The crowds


def at_once(count: int, threads: int, one) -> Counter:
    """Does `one(number)` so often, in so many threads: what came of it, an OSError included."""

    def tried(number: int):
        try:
            return one(number)
        except OSError as error:
            return type(error).__name__

    with ThreadPoolExecutor(threads) as pool:
        return Counter(map(str, pool.map(tried, range(count))))


def visits(to: dict, count: int, a_second: int) -> dict:
    """Each on a new connection, that is closed after the answer: 401, then Digest, as of curl."""
    began = time.monotonic()

    def visit(number: int) -> int:
        time.sleep(max(0, began + number / a_second - time.monotonic()))
        with connect(to) as sock:
            sock.sendall(b'GET / HTTP/1.1\r\nHost: x\r\n\r\n')
            answered(sock)
            status = ask(to, sock)
            sock.settimeout(0)
            with suppress(OSError):  # close_notify is sent, and that of the server not waited for
                sock.unwrap()
            return status

    saw = at_once(count, 64, visit)
    return {'saw': saw, 'seconds': round(time.monotonic() - began, 1)}


def endless(to: dict, port: int) -> dict:
    """For how long the local server at `port` is read after the viewer of its pictures has left."""
    listener, ended = socket.create_server(('127.0.0.1', port)), []

    def serve() -> None:
        sock = listener.accept()[0]
        sock.settimeout(5)
        sock.recv(65536)
        try:
            sock.sendall(b'HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace\r\n\r\n')
            while time.monotonic() - began < PATIENCE_SECONDS:
                sock.sendall(bytes(10_000))
                time.sleep(0.1)
        except OSError:
            ended.append(time.monotonic())

    began, server = time.monotonic(), threading.Thread(target=serve, daemon=True)
    server.start()
    with connect(to) as sock:
        sock.sendall(request(to))
        while time.monotonic() - began < 2:
            sock.recv(65536)
    left = time.monotonic()
    server.join(PATIENCE_SECONDS)
    return {'waited': ended[0] - left if ended else PATIENCE_SECONDS}


def flood(to: dict, threads: int) -> dict:
    """CONNECTs for UUIDs that are made up."""
    began = time.monotonic()

    def one(_) -> Counter:
        seen = Counter()
        while time.monotonic() - began < SECONDS:
            target = f'uuid:{uuids.uuid4()}?response={uuids.uuid4().int % 10**8:08}'
            try:
                with connect(to) as sock:
                    sock.sendall(f'CONNECT {target} HTTP/1.1\r\nHost: x\r\n\r\n'.encode())
                    seen[answered(sock)] += 1
            except OSError as error:
                seen[type(error).__name__] += 1
        return seen

    with ThreadPoolExecutor(threads) as pool:
        return {'saw': sum(pool.map(one, range(threads)), Counter())}


def keep(to: dict, count: int) -> dict:
    """Asks on so many connections, and keeps them."""

    def one(_) -> int:
        sock = connect(to)
        held.append(sock)
        return ask(to, sock)

    return {'saw': at_once(count, 16, one)}


def hang_up(to: dict, count: int) -> dict:
    """So many wait for a hidden server that was here a moment ago, and leave: may one more wait?"""
    with connect(to) as sock:
        sock.sendall(connect_request(to))
        answered(sock)
    waiting = []
    for _ in range(count):
        waiting.append(connect(to))
        waiting[-1].sendall(request(to, uuid=to['other']))
    time.sleep(1)
    for sock in waiting:
        sock.close()
    time.sleep(0.5)
    began = time.monotonic()
    with connect(to | {'source': to['hidden']}) as sock:
        sock.sendall(request(to, uuid=to['other']))
        back = threading.Timer(1, come_back, [to])
        back.start()
        status = answered(sock)
        took = time.monotonic() - began
    back.join()
    return {'status': status, 'waited': took}


def come_back(to: dict) -> None:
    """The hidden server is here again, and answers one request."""
    sock = connect(to | {'source': to['hidden']})
    held.append(sock)
    sock.sendall(connect_request(to))
    answered(sock)
    sock.settimeout(2)  # the request has come by then, or has been refused
    with suppress(OSError):
        sock.recv(65536)
        sock.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n')


def readers(to: dict, count: int) -> dict:
    """They begin a large download, and stop."""

    def one(_) -> int:
        sock = connect(to, receive_bytes=65536)
        held.append(sock)
        sock.sendall(request(to, path='/large'))
        return int(sock.recv(100).split()[1])

    return {'saw': at_once(count, 8, one)}


def silent(to: dict, count: int) -> dict:
    """They shake hands, from several addresses, and say nothing."""

    def one(number: int) -> str:
        held.append(connect(to | {'source': f'127.0.77.{number % 4 + 1}'}))
        return 'there'

    return {'saw': at_once(count, 16, one)}


def half_heads(to: dict, count: int) -> dict:
    def one(_) -> str:
        held.append(connect(to))
        held[-1].sendall(b'GET / HTTP/1.1\r\nHost: x\r\nX')
        return 'there'

    return {'saw': at_once(count, 64, one)}


def main() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    name, arguments = sys.argv[1:]
    sys.stdin.readline()
    print(json.dumps(globals()[name](**json.loads(arguments))), flush=True)
    sys.stdin.read()
    os._exit(0)  # all connections end in this moment, whatever still reads


if __name__ == '__main__':
    main()
