"""The lab: a folder, a certificate, a local web server, and the processes that are started in it.

Everything listens on loopback. What `start` has started is ended by its process id, with its
children, when the `with` block ends.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench import processes
from rendezvous.admin import certificate

ROOT = Path(__file__).resolve().parent.parent
SMALL = b'hello from hidden server\n'
GIGABYTE = 1_000_000_000
PARTS = {'large': 1, 'eighth': 8, 'part': 64}  # of a GB, each a file
UNTIL_SECONDS = 30
# In this server's order, which is Mozilla's: the same TLS for all whose ciphers can be set
CIPHERS = 'TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256'
NGINX = """
daemon off; worker_processes 1; worker_rlimit_nofile 20000; pid {folder}/nginx.pid;
error_log {folder}/nginx.error;
events {{ worker_connections 9000; }}
http {{
  access_log off; sendfile on; tcp_nodelay on; keepalive_requests 100000000;
  client_max_body_size 0; client_body_buffer_size 256k;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  ssl_session_cache off; ssl_session_tickets off; ssl_prefer_server_ciphers on;
  ssl_conf_command Ciphersuites {ciphers};
  server {{
    listen 127.0.0.1:{http} backlog=4096; listen 127.0.0.1:{https} ssl backlog=4096;
    ssl_certificate {both}; ssl_certificate_key {both};
    root {folder}/www; default_type text/plain;
    proxy_http_version 1.1; proxy_buffering off; proxy_request_buffering off;
    location = /count {{ stub_status; }}
    location = /sink {{ proxy_pass http://127.0.0.1:{sink}; }}
    location = /echo {{
      proxy_pass http://127.0.0.1:{echo}; proxy_read_timeout 1h;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;
    }}
  }}
}}
"""


class Lab:
    def __init__(self, folder: Path):
        self.folder = folder
        folder.chmod(0o755)  # nginx's worker is another user
        self.key, self.crt, self.ca = (folder / name for name in ('lab.key', 'lab.crt', 'ca.pem'))
        self.both = folder / 'both.pem'  # certificate and key, as HAProxy wants them
        self._processes: list[subprocess.Popen] = []
        certificate.write_pair('127.0.0.1', self.key, self.crt, 't.lab')
        shutil.copy(certificate.beside(self.crt), self.ca)
        self.both.write_text(self.crt.read_text() + self.key.read_text())
        self.http, self.https, self.sink, self.echo = (self.free_port() for _ in range(4))

    def __enter__(self) -> 'Lab':
        return self

    def __exit__(self, *_) -> None:
        for process in reversed(self._processes):
            self.end(process)

    def serve(self) -> None:
        """Starts the local web server, and what takes uploads and echoes behind it."""
        www = self.folder / 'www'
        www.mkdir()
        (www / 'index.html').write_bytes(SMALL)
        for name, parts in PARTS.items():
            (www / name).touch()
            os.truncate(www / name, GIGABYTE // parts)
        self.start([sys.executable, ROOT / 'bench' / 'sink.py', self.sink])
        echo = ROOT / 'bench' / 'loads' / 'echo.py'
        if echo.exists():
            self.start([sys.executable, echo, self.echo])
        file = self.folder / 'nginx.conf'
        file.write_text(NGINX.format(ciphers=CIPHERS, **vars(self)))
        self.start(['nginx', '-c', file, '-e', self.folder / 'nginx.error'])
        self.reach(self.http)

    def start(self, command: Sequence[object], **more) -> subprocess.Popen:
        """Starts a process; what it prints is in a file of `logs`, unless `more` says where."""
        words = [str(word) for word in command]
        (self.folder / 'logs').mkdir(exist_ok=True)
        file = self.folder / 'logs' / f'{len(self._processes)}-{Path(words[0]).name}'
        with file.open('wb') as log:
            how: dict[str, Any] = {'cwd': self.folder, 'stdout': log, 'stderr': log}
            how['stdin'] = subprocess.DEVNULL
            # A group of its own: Ctrl-C reaches the bench alone, which ends the others in order
            process = subprocess.Popen(words, process_group=0, **how | more)
        self._processes.append(process)
        return process

    def end(self, process: subprocess.Popen, how: int = signal.SIGTERM) -> None:
        """Ends a process and all its children."""
        family = processes.family([process.pid]) if process.poll() is None else []
        with suppress(ProcessLookupError):
            process.send_signal(how)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        processes.kill(family)

    def reach(self, port: int) -> None:
        def reached() -> bool:
            socket.create_connection(('127.0.0.1', port)).close()
            return True

        self.until(reached, f'port {port}')

    def until(
        self, condition: Callable[[], bool], what: str, seconds: float = UNTIL_SECONDS
    ) -> None:
        """Waits until it is true; an OSError or a missing answer is not yet."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with suppress(OSError):
                if condition():
                    return
            time.sleep(0.02)
        raise TimeoutError(f'after {seconds} s not yet: {what}')

    @staticmethod
    def free_port() -> int:
        with socket.create_server(('127.0.0.1', 0)) as sock:
            return sock.getsockname()[1]
