"""What a relay costs in C: HAProxy, stunnel and nginx between the mobile client and the web server.

None of them crosses a NAT. TLS in, TLS out, and a full handshake on both for each new connection:
as many handshakes as a rendezvous has.
"""

from typing import Literal

from bench.lab import CIPHERS, Lab
from bench.peers import Running

NO_TUNNEL = {'g': 'nothing comes back to it', 'e': 'nothing waits at it'}

HAPROXY = """
global
  nbthread 1
  maxconn 9000
  tune.ssl.cachesize 0
  ssl-default-bind-options ssl-min-ver TLSv1.2 no-tls-tickets
  ssl-default-bind-ciphersuites {ciphers}
  ssl-default-server-ciphersuites {ciphers}
defaults
  mode tcp
  timeout connect 10s
  timeout client 600s
  timeout server 600s
frontend f
  bind 127.0.0.1:{port} ssl crt {both}
  default_backend b
backend b
  server s 127.0.0.1:{to} ssl verify none no-ssl-reuse
"""

STUNNEL = """
foreground = yes
pid =
sessionResume = no
options = NO_TICKET
options = CIPHER_SERVER_PREFERENCE
ciphersuites = {ciphers}
socket = l:TCP_NODELAY=1
socket = r:TCP_NODELAY=1
[in]
accept = 127.0.0.1:{port}
connect = 127.0.0.1:{between}
cert = {both}
[out]
client = yes
accept = 127.0.0.1:{between}
connect = 127.0.0.1:{to}
"""

NGINX = """
daemon off; worker_processes 1; worker_rlimit_nofile 20000; pid {folder}/nginx-{port}.pid;
events {{ worker_connections 9000; }}
http {{
  access_log off; keepalive_requests 100000000; client_max_body_size 0;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  ssl_session_cache off; ssl_session_tickets off; ssl_prefer_server_ciphers on;
  ssl_conf_command Ciphersuites {ciphers}; proxy_ssl_conf_command Ciphersuites {ciphers};
  upstream local {{ server 127.0.0.1:{to}; keepalive 200; }}
  # A connection that the client keeps is kept to the web server, too; a client of HTTP/1.0 is ab
  map "$http_upgrade $server_protocol" $upgrade {{
    default ''; "~HTTP/1.0$" close; "~^.+ HTTP" upgrade;
  }}
  server {{
    listen 127.0.0.1:{port} ssl backlog=4096; ssl_certificate {both}; ssl_certificate_key {both};
    location / {{ {does} }}
  }}
}}
"""
ANSWER = 'return 200 "hello";'
PROXY = """
    proxy_pass https://local; proxy_ssl_session_reuse off; proxy_http_version 1.1;
    proxy_buffering off; proxy_request_buffering off;
    proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $upgrade;
"""


class HAProxy:
    name = 'HAProxy'
    kind: Literal['floor'] = 'floor'
    cannot = NO_TUNNEL

    def start(self, lab: Lab) -> Running:
        port, file = lab.free_port(), lab.folder / 'haproxy.cfg'
        file.write_text(HAPROXY.format(ciphers=CIPHERS, port=port, both=lab.both, to=lab.https))
        return reached(lab, port, ['haproxy', '-db', '-f', file])


class Stunnel:
    name = 'stunnel, twice'
    kind: Literal['floor'] = 'floor'
    cannot = NO_TUNNEL

    def start(self, lab: Lab) -> Running:
        port, file = lab.free_port(), lab.folder / 'stunnel.conf'
        ports = {'port': port, 'between': lab.free_port(), 'to': lab.https}
        file.write_text(STUNNEL.format(ciphers=CIPHERS, both=lab.both, **ports))
        return reached(lab, port, ['stunnel', file])


class Nginx:
    kind: Literal['floor'] = 'floor'

    def __init__(self, name: str, does: str, **cannot: str):
        self.name, self._does, self.cannot = name, does, NO_TUNNEL | cannot

    def start(self, lab: Lab) -> Running:
        port = lab.free_port()
        file = lab.folder / f'nginx-{port}.conf'
        where = {'ciphers': CIPHERS, 'folder': lab.folder, 'both': lab.both, 'to': lab.https}
        file.write_text(NGINX.format(port=port, does=self._does, **where))
        return reached(lab, port, ['nginx', '-c', file, '-e', 'stderr'])


def reached(lab: Lab, port: int, command: list) -> Running:
    process = lab.start(command)
    lab.reach(port)
    return Running(f'https://127.0.0.1:{port}/', [process.pid])


ALONE = 'it answers itself'
FLOORS = (
    HAProxy(),
    Stunnel(),
    Nginx('nginx, proxy', PROXY),
    Nginx('nginx, one handshake', ANSWER, **dict.fromkeys('cdfh', ALONE)),
)
