"""This server, in a folder of its own, and hidden.py beside the local web server."""

import base64
import json
import shutil
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Literal

from bench.lab import ROOT, Lab
from bench.peers import Running
from bench.processes import workers
from rendezvous.wire import codes

LIMITS = dict.fromkeys(['max_connections_per_address', 'max_pipes_per_address'], 0)
OPTIONS = LIMITS | {'workers': 1, 'max_waiting': 9000, 'max_connections': 20_000}


class Server:
    """The server, with one entry. All clients have one address here: limits for one are off."""

    def __init__(self, lab: Lab, **options):
        self.lab, self.port = lab, lab.free_port()
        self.folder = lab.folder / f'rendezvous-{self.port}'
        self.folder.mkdir()
        for path in (*ROOT.glob('*.py'), ROOT / 'rendezvous'):
            copy = shutil.copytree if path.is_dir() else shutil.copy
            copy(path, self.folder / path.name)
        files = {'key_file': str(lab.key), 'crt_file': str(lab.crt)}
        options = {'rendezvous_port': self.port} | files | OPTIONS | options
        local = self.folder / 'local.py'
        local.touch(mode=0o600)  # it may hold a secret
        local.write_text(f'options = {options}\n')
        self.context = None  # plain HTTP
        if options['key_file']:
            self.context = ssl.create_default_context(cafile=lab.ca)
        self.log = self.folder / 'server.log'
        self.start()
        lab.until(lambda: 'listening on' in self.log.read_text(), 'it serves')
        self.workers = workers(self.process.pid)
        self.entry = self.add()

    @property
    def pids(self) -> list[int]:
        return [self.process.pid]

    def start(self) -> list[int]:
        self.process = self.lab.start([sys.executable, 'server.py'], cwd=self.folder)
        self.lab.until(self._accepts, 'it accepts')
        return self.pids

    def _accepts(self) -> bool:
        """Whether it shakes hands: the system takes connections while its workers still start."""
        self.connect().close()
        return True

    def add(self) -> Path:
        """A new entry's file."""
        before = self._entries()
        add = [sys.executable, 'users_app.py', 'add']
        subprocess.run(add, cwd=self.folder, check=True, capture_output=True)
        return (self._entries() - before).pop()

    def _entries(self) -> set[Path]:
        return {*(self.folder / 'entries').glob('*.json')}

    def connect(self) -> socket.socket:
        sock = socket.create_connection(('127.0.0.1', self.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.context.wrap_socket(sock, server_hostname='127.0.0.1') if self.context else sock

    def register(self, entry: Path | None = None) -> socket.socket:
        """A registration that waits; of another entry, no visit of `serve` takes it."""
        sock, entry = self.connect(), entry or self.entry
        code = codes.totp(json.loads(entry.read_text())['authParams']).now()
        sock.sendall(f'CONNECT uuid:{entry.stem}?response={code} HTTP/1.1\r\n\r\n'.encode())
        assert sock.recv(100).startswith(b'HTTP/1.1 200 ')
        return sock

    def serve(self) -> Running:
        """Starts hidden.py, too."""
        uuid = self.entry.stem
        command = [sys.executable, 'hidden.py', self.entry, f'127.0.0.1:{self.lab.http}']
        hidden = self.lab.start(command, cwd=self.folder)
        name = base64.b64encode(f'{uuid}:x'.encode()).decode()
        return Running(
            f'{"https" if self.context else "http"}://127.0.0.1:{self.port}/',
            self.pids,
            [hidden.pid],
            [f'Authorization: Basic {name}'],
            digest=uuid,
            again=self.start,
        )


class Ours:
    kind: Literal['ours'] = 'ours'

    def __init__(self, workers: int):
        self.cannot: dict[str, str] = {}
        self._workers = workers
        self.name = 'this server' if workers == 1 else f'this server, {workers} workers'

    def start(self, lab: Lab) -> Running:
        return Server(lab, workers=self._workers).serve()
