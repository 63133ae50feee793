"""What the server costs, beside HAProxy doing the same work in the same run: ratios, not figures.

    .venv/bin/python bench/compare.py [GIGABYTES]

Needs: apt install haproxy apache2-utils. Prints, a line each: the CPU seconds to pipe so much from
one TLS connection to another; the CPU milliseconds per request, each on a new TLS connection (two
handshakes here, that of the mobile client and that of the next registration; one at HAProxy); and
the memory that a waiting registration takes.
"""

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from processes import cpu_seconds, memory_bytes, workers

from rendezvous.wire import codes

MEBIBYTE = bytes(1024 * 1024)
REQUESTS, REGISTRATIONS = 1000, 1000
HAPROXY = """
global
  nbthread 1
  ssl-default-bind-options ssl-min-ver TLSv1.2 no-tls-tickets
defaults
  mode {mode}
  timeout connect 10s
  timeout client 600s
  timeout server 600s
frontend f
  bind 127.0.0.1:{port} ssl crt {pem}
  default_backend b
backend b
  server s 127.0.0.1:{to} {how}
"""


def free_port() -> int:
    with socket.create_server(('127.0.0.1', 0)) as sock:
        return sock.getsockname()[1]


class Set:
    """The server in a folder of its own, with one entry; the processes that it starts."""

    def __init__(self, folder: Path, **options):
        self.folder, self._processes = folder, []
        folder.mkdir(exist_ok=True)
        for pattern in ('*.py', 'rendezvous'):
            for path in ROOT.glob(pattern):
                copy = shutil.copytree if path.is_dir() else shutil.copy
                copy(path, folder / path.name)
        self.port = free_port()
        given = {'rendezvous_port': self.port, 'max_waiting': 5000, 'workers': 1}
        options = given | {'key_file': 'registrar.key'} | options
        options |= {'max_connections_per_address': 0, 'max_pipes_per_address': 0}
        (folder / 'local.py').write_text(f'options = {options}\n')
        self.context = None  # plain HTTP
        if options['key_file']:
            make = [sys.executable, 'make_cert.py']
            subprocess.run(make, cwd=folder, check=True, capture_output=True)
            self.context = ssl.create_default_context(cafile=folder / 'registrar.crt')
        self.server = self.start([sys.executable, 'server.py'], stderr=subprocess.DEVNULL)
        self.until(lambda: 'listening on' in (folder / 'server.log').read_text(), 'it serves')
        self.workers = workers(self.server.pid)
        self.pids = [self.server.pid, *self.workers]  # whose cost is counted
        self.entry = self.add()
        self.parameters = json.loads(self.entry.read_text())['authParams']

    def add(self) -> Path:
        """A new entry's file."""
        before, add = self.entries(), [sys.executable, 'users_app.py', 'add']
        subprocess.run(add, cwd=self.folder, check=True, capture_output=True)
        return (self.entries() - before).pop()

    def entries(self) -> set[Path]:
        return {*(self.folder / 'entries').glob('*.json')}

    def start(self, command: list, **more) -> subprocess.Popen:
        self._processes.append(subprocess.Popen(command, cwd=self.folder, **more))
        return self._processes[-1]

    def end(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
            process.wait()

    def reach(self, port: int) -> None:
        def reached() -> bool:
            socket.create_connection(('127.0.0.1', port)).close()
            return True

        self.until(reached, f'port {port}')

    def until(self, condition: Callable[[], bool], what: str) -> None:
        for _ in range(1000):
            with suppress(OSError):
                if condition():
                    return
            time.sleep(0.02)
        raise TimeoutError(what)

    def haproxy(self, to: int, mode: str, how: str) -> tuple[subprocess.Popen, int]:
        port, pem = free_port(), self.folder / 'both.pem'
        if not pem.exists():
            both = [(self.folder / f'registrar.{name}').read_text() for name in ('crt', 'key')]
            pem.write_text(''.join(both))
        file = self.folder / f'haproxy.{port}'
        file.write_text(HAPROXY.format(port=port, pem=pem, to=to, mode=mode, how=how))
        process = self.start(['haproxy', '-db', '-q', '-f', str(file)])
        self.reach(port)
        return process, port

    def connect(self, port: int = 0) -> socket.socket:
        sock = socket.create_connection(('127.0.0.1', port or self.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not self.context:
            return sock
        return self.context.wrap_socket(sock, server_hostname='127.0.0.1')

    def register(self) -> socket.socket:
        sock = self.connect()
        code = codes.totp(self.parameters).now()
        sock.sendall(f'CONNECT uuid:{self.entry.stem}?response={code} HTTP/1.1\r\n\r\n'.encode())
        assert sock.recv(100).startswith(b'HTTP/1.1 200 ')
        return sock


def download(sock: socket.socket, uuid: str) -> int:
    """The octets that come for a request, by the method of least work."""
    sock.sendall(f'GET /?rendezvous={uuid} HTTP/1.1\r\nHost: x\r\n\r\n'.encode())
    buffer, count = bytearray(65536), 0
    while octets := sock.recv_into(buffer):
        count += octets
    return count


def in_child(work, *arguments) -> int:
    pid = os.fork()
    if not pid:
        work(*arguments)
        os._exit(0)
    return pid


def send(sock: socket.socket, gigabytes: int) -> None:
    sock.recv(65536)
    for _ in range(gigabytes * 1024):
        sock.sendall(MEBIBYTE)
    sock.unwrap()


def pipe(bench: Set, gigabytes: int) -> None:
    uuid, count = bench.entry.stem, gigabytes * 1024**3
    hidden = bench.register()
    child = in_child(send, hidden, gigabytes)
    before = cpu_seconds(bench.pids)
    assert download(bench.connect(), uuid) == count
    ours = cpu_seconds(bench.pids) - before
    os.waitpid(child, 0)
    with socket.create_server(('127.0.0.1', 0)) as listener:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(bench.folder / 'registrar.crt', bench.folder / 'registrar.key')
        to = listener.getsockname()[1]
        haproxy, port = bench.haproxy(to, 'tcp', 'ssl verify none')

        def serve() -> None:
            while True:  # the first connections are those that looked whether HAProxy is up
                try:
                    sock = context.wrap_socket(listener.accept()[0], server_side=True)
                    return send(sock, gigabytes)
                except OSError:
                    pass

        child = in_child(serve)
        before = cpu_seconds([haproxy.pid])
        assert download(bench.connect(port), uuid) == count
        theirs = cpu_seconds([haproxy.pid]) - before
        os.waitpid(child, 0)
    print(f'pipe {gigabytes} GiB: {ours:.2f} s, HAProxy {theirs:.2f} s, ratio {ours / theirs:.2f}')


def requests(bench: Set) -> None:
    uuid, port = bench.entry.stem, free_port()
    (bench.folder / 'www').mkdir()
    (bench.folder / 'www' / 'index.html').write_text('hello')
    quiet = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}
    serve = [sys.executable, '-m', 'http.server', '-b', '127.0.0.1', '-d', 'www', str(port)]
    bench.start(serve, **quiet)
    bench.reach(port)
    bench.start([sys.executable, 'hidden.py', str(bench.entry), f'127.0.0.1:{port}'], **quiet)
    haproxy, theirs = bench.haproxy(port, 'http', '')
    costs = []
    for pids, to in ((bench.pids, bench.port), ([haproxy.pid], theirs)):
        ab = ['ab', '-q', '-n', str(REQUESTS), '-c', '20', '-A', f'{uuid}:x']
        before = cpu_seconds(pids)
        output = subprocess.run(
            [*ab, f'https://127.0.0.1:{to}/'], check=True, capture_output=True, text=True
        ).stdout
        assert 'Failed requests:        0' in output, output
        assert 'Non-2xx' not in output, output
        costs.append((cpu_seconds(pids) - before) * 1000 / REQUESTS)
    ours, theirs = costs
    print(f'request: {ours:.2f} ms, HAProxy {theirs:.2f} ms, ratio {ours / theirs:.1f}')


def waiting(bench: Set) -> None:
    before = memory_bytes(bench.workers)
    waiting = [bench.register() for _ in range(REGISTRATIONS)]
    each = (memory_bytes(bench.workers) - before) / REGISTRATIONS
    print(f'waiting registration: {each / 1024:.1f} KiB')
    for sock in waiting:
        sock.close()


def main() -> None:
    gigabytes = int(sys.argv[1]) if sys.argv[1:] else 1
    with tempfile.TemporaryDirectory() as folder:
        bench = Set(Path(folder))
        try:
            waiting(bench)
            pipe(bench, gigabytes)
            requests(bench)
        finally:
            bench.end()


if __name__ == '__main__':
    main()
