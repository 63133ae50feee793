"""What hidden.py --forwarded costs, beside the same visits without it: ratios, not figures.

    .venv/bin/python bench/gateway.py [MEBIBYTES]

Prints the CPU time of the hidden server's end alone: for a request on a kept connection, with the
fields that a browser sends and with those of curl, and for a GiB each way in one body, with its
length and in chunks. The local server and the mobile client are processes of their own.
"""

from gevent import monkey

monkey.patch_all()

import socket
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gevent.pool import Pool
from gevent.server import StreamServer

from rendezvous.admin import certificate
from rendezvous.hidden.local_server import LocalServer
from rendezvous.hidden.target import Target
from rendezvous.wire import sockets
from rendezvous.wire.addresses import Peer

UUID = '7d4e1a52-3c0b-4f6e-9a81-52c60b8f1d27'
REQUESTS, ROUNDS = 5000, 3
CHUNK = bytes(32 * 1024)
CURL = ['User-Agent: curl/8.5.0', 'Accept: */*']
BROWSER = [*CURL, *(f'Sec-Some-Field-{number}: {"x" * 45}' for number in range(12))]
ANSWER = b'HTTP/1.1 200 OK\r\nServer: bench\r\nContent-Type: text/plain\r\nContent-Length: '


def head(*fields: str, method: str = 'GET') -> bytes:
    return '\r\n'.join([f'{method} / HTTP/1.1', 'Host: localhost', *fields, '', '']).encode()


def read_head(file) -> None:
    while file.readline() not in (b'\r\n', b''):
        pass


def framed(mebibytes: int, is_chunked: bool) -> tuple[str, bytes, int]:
    """The field that frames a body, a piece of it, and how many of those come."""
    piece = b'%x\r\n%s\r\n' % (len(CHUNK), CHUNK) if is_chunked else CHUNK
    count = mebibytes * 1024 * 1024 // len(CHUNK)
    how = 'Transfer-Encoding: chunked' if is_chunked else f'Content-Length: {count * len(CHUNK)}'
    return how, piece, count


def local_server(what: str, count: int) -> None:
    """Serves connections one after the other."""
    with socket.create_server(('127.0.0.1', 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            sock, _ = listener.accept()
            with sock, sock.makefile('rb') as file:
                answer(what, count, sock, file)


def answer(what: str, count: int, sock, file) -> None:
    if what.startswith('request'):
        for _ in range(count):
            read_head(file)
            sock.sendall(ANSWER + b'0\r\n\r\n')
        return
    read_head(file)
    how, piece, pieces = framed(count, 'chunks' in what)
    if what.startswith('up'):
        for _ in range(pieces):
            file.read(len(piece))
        sock.sendall(ANSWER + b'0\r\n\r\n')
    else:
        sock.sendall(f'HTTP/1.1 200 OK\r\n{how}\r\n\r\n'.encode())
        for _ in range(pieces):
            sock.sendall(piece)
    file.read(5)


def mobile_client(what: str, count: int, port: int, ca: str) -> None:
    context = ssl.create_default_context(cafile=ca)
    plain = socket.create_connection(('127.0.0.1', port))
    with (
        context.wrap_socket(plain, server_hostname='127.0.0.1') as sock,
        sock.makefile('rb') as file,
    ):
        if what.startswith('request'):
            octets = head(*(BROWSER if 'browser' in what else CURL))
            for _ in range(count):
                sock.sendall(octets)
                read_head(file)
            return
        how, piece, pieces = framed(count, 'chunks' in what)
        if what.startswith('up'):
            sock.sendall(head(how, method='POST'))
            for _ in range(pieces):
                sock.sendall(piece)
            read_head(file)
        else:
            sock.sendall(head())
            read_head(file)
            for _ in range(pieces):
                file.read(len(piece))


class HiddenEnd:
    """Visits, as hidden.py serves them, in this process."""

    def __init__(self, pair: dict[str, Path], port: int, is_forwarded: bool):
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(pair['crt_file'], pair['key_file'])
        target = Target('127.0.0.1', port, forwarding_as='' if is_forwarded else None)
        self._local = LocalServer(target, UUID, Pool(None))
        self.server = StreamServer(('127.0.0.1', 0), self._visit)
        self.server.start()

    def _visit(self, raw, _) -> None:
        sock = sockets.TLSSocket(self._context, raw)
        sock.do_handshake()
        # As the rendezvous server: it gives the first head with the connection
        self._local.pipe(sock, sock.receive(), Peer('192.0.2.7', 4711))
        sockets.close_gracefully(sock)


def cpu_seconds(pair: dict[str, Path], what: str, count: int, is_forwarded: bool) -> float:
    command = [sys.executable, __file__]
    local = subprocess.Popen([*command, 'local', what, str(count)], stdout=subprocess.PIPE)
    assert local.stdout
    try:
        hidden = HiddenEnd(pair, int(local.stdout.readline()), is_forwarded)
        began = time.process_time()
        where = str(hidden.server.server_port), str(pair['crt_file'])
        subprocess.run([*command, 'mobile', what, str(count), *where], check=True, timeout=300)
        seconds = time.process_time() - began
        hidden.server.stop()
        return seconds
    finally:
        local.kill()
        local.wait()
        local.stdout.close()


def main(mebibytes: int) -> None:
    kinds = {'request of curl': REQUESTS, 'request of a browser': REQUESTS}
    kinds |= dict.fromkeys(['up', 'up in chunks', 'down', 'down in chunks'], mebibytes)
    print(f'{"":24}{"copied":>12}{"forwarded":>12}{"ratio":>8}')
    with tempfile.TemporaryDirectory() as folder:
        pair = {name: Path(folder, name) for name in ('key_file', 'crt_file')}
        certificate.write_pair('127.0.0.1', pair['key_file'], pair['crt_file'])
        for what, count in kinds.items():
            copied, forwarded = (
                min(cpu_seconds(pair, what, count, forwards) for _ in range(ROUNDS))
                for forwards in (False, True)
            )
            scale, unit = (1e6 / count, 'us') if 'request' in what else (1024 / count, 's/GiB')
            each = [f'{seconds * scale:.2f} {unit}' for seconds in (copied, forwarded)]
            print(f'{what:24}{each[0]:>12}{each[1]:>12}{forwarded / copied:8.2f}', flush=True)


if __name__ == '__main__':
    if sys.argv[1:2] == ['local']:
        local_server(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1:2] == ['mobile']:
        mobile_client(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else 512)
