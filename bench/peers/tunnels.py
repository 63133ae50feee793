"""The tunnels that people would pick instead, each started as its documentation says.

Where a tunnel has TLS it is on, with the lab's certificate. Most leave the TLS of their mobile
clients to a server in front; OpenSSH and those nearest to ours run behind stunnel, whose CPU is
then the server's. setup.sh installs them. Nothing is fetched here.
"""

import getpass
import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Literal

from bench import processes
from bench.lab import CIPHERS, ROOT, Lab
from bench.peers import Running

BIN = ROOT / '.venv' / 'bench-peers' / 'bin'
NODE = ROOT / '.venv' / 'bench-node' / 'node_modules' / '.bin'
TOKEN = 'the-token-of-the-bench'
STUNNEL = """
foreground = yes
pid =
debug = err
[tunnel]
accept = 127.0.0.1:{port}
connect = 127.0.0.1:{to}
cert = {both}
options = NO_TICKET
options = CIPHER_SERVER_PREFERENCE
ciphersuites = {ciphers}
socket = l:TCP_NODELAY=1
socket = r:TCP_NODELAY=1
"""


@dataclass
class Plan:
    """What a tunnel starts, and where its mobile clients ask."""

    server: Sequence[object]
    client: Callable[[int], Sequence[object]]  # the hidden part; number 0 is the one that is asked
    door: int  # the port of the clients at the server
    port: int  # that of the mobile clients
    headers: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    scheme: str = 'http'


@dataclass
class Tunnel:
    name: str
    legs: str
    plan: Callable[[Lab, Path], Plan]
    program: str | Path
    cannot: dict[str, str] = field(default_factory=dict)
    behind_stunnel: bool = False
    kind: Literal['tunnel'] = 'tunnel'

    def __post_init__(self) -> None:
        self.cannot = {'a': 'it sends no 401', 'i': 'it has no workers', **self.cannot}
        if not shutil.which(self.program, path=f'{os.environ["PATH"]}:/usr/sbin'):
            self.cannot = dict.fromkeys('abcdefghi', f'{Path(self.program).name} is not installed')

    def start(self, lab: Lab) -> Running:
        folder = lab.folder / re.sub(r'\W+', '-', self.name)
        folder.mkdir()
        plan = self.plan(lab, folder)
        environment = os.environ | plan.environment
        scheme, port, servers = plan.scheme, plan.port, [plan.server]
        if self.behind_stunnel:
            scheme, port, file = 'https', lab.free_port(), folder / 'stunnel.conf'
            file.write_text(STUNNEL.format(ciphers=CIPHERS, port=port, to=plan.port, both=lab.both))
            servers.append(['stunnel', file])

        def serve() -> list[int]:
            pids = [lab.start(each, env=environment).pid for each in servers]
            lab.reach(plan.door)
            return pids

        def another() -> None:
            client = lab.start(plan.client(next(numbers)), env=environment)
            lab.until(lambda: connected(client.pid), 'one more client')

        server, numbers = serve(), count()
        hidden = lab.start(plan.client(next(numbers)), env=environment)
        url = f'{scheme}://127.0.0.1:{port}/'
        running = Running(url, server, [hidden.pid], plan.headers, self.legs)
        running.again = serve if 'g' not in self.cannot else None
        running.another = another if 'e' not in self.cannot else None
        return running


def connected(pid: int) -> bool:
    return any(processes.connections(each) for each in processes.family([pid]))


SSH_ENDS = 'ssh ends with its server, and what starts it again (autossh, systemd) is not its own'
SSHD = """
ListenAddress 127.0.0.1:{door}
HostKey {folder}/host
AuthorizedKeysFile {folder}/id.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
AllowTcpForwarding remote
ClientAliveInterval 15
MaxStartups 100
"""


def openssh(lab: Lab, folder: Path) -> Plan:
    door, port = lab.free_port(), lab.free_port()
    for name in ('host', 'id'):
        make = ['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', str(folder / name)]
        subprocess.run(make, check=True)
    config = folder / 'sshd_config'
    config.write_text(SSHD.format(door=door, folder=folder))
    if os.geteuid() == 0:
        Path('/run/sshd').mkdir(exist_ok=True)  # sshd's own folder, which its service makes
    options = {
        'UserKnownHostsFile': folder / 'known',
        'StrictHostKeyChecking': 'accept-new',
        'ExitOnForwardFailure': 'yes',
        'ServerAliveInterval': 15,
    }

    def client(number: int) -> list[object]:
        given = [f'-o{name}={value}' for name, value in options.items()]
        at = f'127.0.0.1:{0 if number else port}:127.0.0.1:{lab.http}'  # 0: any free one
        user = f'{getpass.getuser()}@127.0.0.1'
        return ['ssh', '-F', 'none', '-N', '-p', door, '-i', folder / 'id', *given, '-R', at, user]

    return Plan(
        [shutil.which('sshd', path='/usr/sbin'), '-D', '-e', '-f', config], client, door, port
    )


def viaduct(lab: Lab, folder: Path) -> Plan:
    door, port = lab.free_port(), lab.free_port()
    server = [BIN / 'viaductd', '--bind', '127.0.0.1', '--public-bind', '127.0.0.1']
    server += ['--public-port', port, '--tunnel-port', door, '--base-domain', 't.lab']
    server += ['--tls-cert', lab.crt, '--tls-key', lab.key]
    server += ['--max-conns-per-tunnel', 512, '--max-tunnels-per-ip', 10000]

    def client(number: int) -> list[object]:
        to = ['--server', f'127.0.0.1:{door}', '--tls', '--tls-ca', lab.ca]
        local = lab.free_port() if number else lab.http  # a second one of a port ends the first
        return [BIN / 'viaduct', 'http', local, *to, '--name', f'bench{number}']

    environment = dict.fromkeys(('XDG_CONFIG_HOME', 'XDG_STATE_HOME'), str(folder))
    environment['VIADUCT_NO_UPDATE_CHECK'] = '1'
    return Plan(server, client, door, port, ['Host: bench0.t.lab'], environment)


def nat_tunnel(lab: Lab, folder: Path) -> Plan:
    door, port = lab.free_port(), lab.free_port()
    config = folder / 'server.toml'
    config.write_text(f'bindHost = "127.0.0.1"\nbindPort = {door}\ntoken = "{TOKEN}"\n')

    def client(number: int) -> list[object]:
        file = folder / f'client{number}.toml'
        # Its certificate is new at each start: '...' takes any.
        file.write_text(f"""
serverHost = "127.0.0.1"
serverPort = {door}
token = "{TOKEN}"
serverFingerprint = "..."
[[proxies]]
name = "bench{number}"
type = "tcp"
localPort = {lab.http}
remoteHost = "127.0.0.1"
remotePort = {0 if number else port}
""")
        return [BIN / 'py-frp', 'client', '-c', file, '--no-auto-restart']

    options = ['--no-auto-restart', '--no-auto-elevate']
    return Plan([BIN / 'py-frp', 'server', '-c', config, *options], client, door, port)


def websocket_tunnel(lab: Lab, folder: Path) -> Plan:
    door, port = lab.free_port(), lab.free_port()
    config = folder / 'server.toml'
    config.write_text(f"""
listen = "127.0.0.1:{door}"
token = "{TOKEN}"
tls = {{ cert = "{lab.crt}", key = "{lab.key}" }}
""")

    def client(number: int) -> list[object]:
        file = folder / f'client{number}.toml'
        file.write_text(f"""
server = "127.0.0.1:{door}"
token = "{TOKEN}"
tls = true
tls_skip_verify = true
[[proxies]]
name = "bench{number}"
listen = "127.0.0.1:{lab.free_port() if number else port}"
listen_side = "peer"
backend = "127.0.0.1:{lab.http}"
backend_side = "local"
""")
        return [BIN / 'wtunnel', 'client', '-c', file]

    return Plan([BIN / 'wtunnel', 'server', '-c', config], client, door, port)


def subspace(lab: Lab, folder: Path) -> Plan:
    port = lab.free_port()
    config = folder / 'server.yaml'
    config.write_text(f'listen: "127.0.0.1:{port}"\nclient_tokens:\n  - "{TOKEN}"\n')

    def client(number: int) -> list[object]:
        to = ['--server', f'http://127.0.0.1:{port}', '--token', TOKEN]
        return [BIN / 'subspace', 'client', *to, '--id', f'bench{number}', '--port', lab.http]

    server = [BIN / 'subspace', 'server', '--config', config]
    return Plan(server, client, port, port, ['Authorization: Bearer bench0'])


# All was seen here; the bench would wait minutes for it.
PAGEKITE_CANNOT = {
    'c': 'a request waits for up to a second: 7 a second on one connection',
    'd': '125 MB took it 39 s down, 65 s up',
    'f': 'it reset 200 of 200',
    'g': 'its client came back after 50 s',
}


def pagekite(lab: Lab, folder: Path) -> Plan:
    port = lab.free_port()
    quiet = ['pagekite', '--clean', '--nullui', '--nocrashreport']
    server = [*quiet, '--isfrontend', '--host=127.0.0.1', f'--ports={port}', '--protos=http']
    server += [f'--domain=http:*.t.lab:{TOKEN}', f'--logfile={folder}/server.log']

    def client(number: int) -> list[object]:
        service = f'http:bench{number}.t.lab:127.0.0.1:{lab.http}:{TOKEN}'
        to = [f'--frontend=127.0.0.1:{port}', f'--service_on={service}']
        return [*quiet, *to, f'--logfile={folder}/client{number}.log']

    return Plan(server, client, port, port, ['Host: bench0.t.lab'])


PIPENET_CANNOT = {
    'b': 'it keeps connections open after answers of HTTP/1.0: ab waits for their end',
    'e': 'the memory of Node.js moves by more than its clients take',
    'f': 'it has ten connections for a tunnel: 200 WebSockets stop it for good',
    'g': 'its client does not come back',
}


def pipenet(lab: Lab, folder: Path) -> Plan:
    door, port = lab.free_port(), lab.free_port()
    server = [NODE / 'pipenet', 'server', '--address', '127.0.0.1', '--port', port]
    server += ['--tunnel-port', door, '--domain', 'localhost']

    def client(number: int) -> list[object]:
        to = ['--host', f'http://localhost:{port}', '--port', lab.http, '--local-host', '127.0.0.1']
        return [NODE / 'pipenet', 'client', *to, '--subdomain', f'bench{number}']

    return Plan(server, client, port, port, ['Host: bench0.localhost'])


# The domain only names the tunnel: nobody looks it up. VMess encrypts nothing itself, TLS does. By
# default it keeps a connection for a second after one side has ended: 0 is in its favour (1,800 new
# connections a second, not 4).
PORTAL = """{
  "log": {"loglevel": "error"},
  "policy": {"levels": {"0": {"uplinkOnly": 0, "downlinkOnly": 0}}},
  "reverse": {"portals": [{"tag": "portal", "domain": "tunnel.lab"}]},
  "inbounds": [
    {"tag": "clients", "listen": "127.0.0.1", "port": %(port)d, "protocol": "dokodemo-door",
     "settings": {"address": "127.0.0.1", "port": 9, "network": "tcp"}},
    {"tag": "door", "listen": "127.0.0.1", "port": %(door)d, "protocol": "vmess",
     "settings": {"clients": [{"id": "%(user)s", "alterId": 0}]},
     "streamSettings": {"security": "tls", "tlsSettings": {
       "certificates": [{"certificateFile": "%(crt)s", "keyFile": "%(key)s"}]}}}
  ],
  "outbounds": [{"protocol": "blackhole"}],
  "routing": {"rules": [
    {"type": "field", "inboundTag": ["clients"], "outboundTag": "portal"},
    {"type": "field", "inboundTag": ["door"], "domain": ["full:tunnel.lab"],
     "outboundTag": "portal"}
  ]}
}"""
BRIDGE = """{
  "log": {"loglevel": "error"},
  "policy": {"levels": {"0": {"uplinkOnly": 0, "downlinkOnly": 0}}},
  "reverse": {"bridges": [{"tag": "bridge", "domain": "tunnel.lab"}]},
  "outbounds": [
    {"tag": "door", "protocol": "vmess",
     "settings": {"vnext": [{"address": "127.0.0.1", "port": %(door)d,
       "users": [{"id": "%(user)s", "alterId": 0, "security": "none"}]}]},
     "streamSettings": {"security": "tls", "tlsSettings": {"allowInsecure": true}}},
    {"tag": "local", "protocol": "freedom", "settings": {"redirect": "127.0.0.1:%(http)d"}}
  ],
  "routing": {"rules": [
    {"type": "field", "inboundTag": ["bridge"], "domain": ["full:tunnel.lab"],
     "outboundTag": "door"},
    {"type": "field", "inboundTag": ["bridge"], "outboundTag": "local"}
  ]}
}"""


def v2ray(lab: Lab, folder: Path) -> Plan:
    door, port = lab.free_port(), lab.free_port()
    given = vars(lab) | {'door': door, 'port': port, 'user': uuid.uuid4()}
    for name, config in (('portal', PORTAL), ('bridge', BRIDGE)):
        (folder / name).write_text(config % given)
    command = ['v2ray', '-format', 'json', '-config']
    return Plan([*command, folder / 'portal'], lambda _: [*command, folder / 'bridge'], door, port)


HAPROXY = """
global
  expose-experimental-directives
  nbthread 1
  maxconn 9000
  tune.ssl.cachesize 0
  ssl-default-bind-options no-tls-tickets
defaults
  mode http
  timeout connect 10s
  timeout client 600s
  timeout server 600s
"""
# One thread, since threads do not share idle connections; and requests share connections always, or
# 64 at a time are more than 16 connections take: both were answered with 503. No client certificate
# is asked for: that is in its favour.
EDGE = """
frontend clients
  bind 127.0.0.1:{port} ssl crt {both}
  default_backend hidden
backend hidden
  http-reuse always
  server pool rhttp@ ssl verify none sni str(bench) pool-max-conn 100
frontend door
  bind 127.0.0.1:{door} ssl crt {both} alpn h2
  tcp-request session attach-srv hidden/pool name str(bench)
"""
BEHIND = """
backend edge
  server edge 127.0.0.1:{door} ssl ca-file {ca} verify required alpn h2
frontend back
  bind rhttp@edge/edge nbconn 16
  default_backend local
backend local
  server local 127.0.0.1:{http}
"""


def haproxy(lab: Lab, folder: Path) -> Plan:
    given = vars(lab) | {'door': lab.free_port(), 'port': lab.free_port()}
    for name, config in (('edge', EDGE), ('behind', BEHIND)):
        (folder / name).write_text(HAPROXY + config.format(**given))
    command = ['haproxy', '-db', '-f']
    edge, behind = ([*command, folder / name] for name in ('edge', 'behind'))
    return Plan(edge, lambda _: behind, given['door'], given['port'], scheme='https')


def haproxy_cannot() -> dict[str, str]:
    if not shutil.which('haproxy'):
        return {}
    said = subprocess.run(['haproxy', '-v'], capture_output=True, text=True).stdout
    version = re.search(r'version (\d+)\.(\d+)', said)
    if version and (int(version[1]), int(version[2])) >= (2, 9):
        return {'e': 'its clients are one pool'}
    return dict.fromkeys('abcdefghi', 'HAProxy has it from version 2.9 on')


TUNNELS = [
    Tunnel('OpenSSH -R', 'plain, SSH', openssh, 'sshd', {'g': SSH_ENDS}),
    Tunnel('OpenSSH -R behind stunnel', 'TLS, SSH', openssh, 'sshd', {'g': SSH_ENDS}, True),
    Tunnel('viaduct-sh behind stunnel', 'TLS, TLS', viaduct, BIN / 'viaduct', {}, True),
    Tunnel('py-simple-nat-tunnel behind stunnel', 'TLS, TLS', nat_tunnel, BIN / 'py-frp', {}, True),
    Tunnel('websocket-tunnel', 'plain, TLS', websocket_tunnel, BIN / 'wtunnel'),
    Tunnel('subspace-tunnel', 'plain, plain', subspace, BIN / 'subspace'),
    Tunnel('pagekite', 'plain, plain', pagekite, 'pagekite', PAGEKITE_CANNOT),
    Tunnel('v2ray', 'plain, TLS', v2ray, 'v2ray', {'e': 'its clients are one pool'}),
    Tunnel('HAProxy reverse HTTP', 'TLS, TLS', haproxy, 'haproxy', haproxy_cannot()),
    Tunnel('pipenet', 'plain, plain', pipenet, NODE / 'pipenet', PIPENET_CANNOT),
]
