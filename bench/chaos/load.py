"""How the server does under a crowd, and under those who take their time or say nothing.

    .venv/bin/python bench/chaos/load.py [REGISTRATIONS [PIPES]]

Prints what a well-behaved mobile client has to wait, each time on a connection of its own, while
more and more is under way; what a waiting registration takes; and what is left when all have gone.
Needs: apt install slowhttptest. Takes about three minutes.
"""

import socket
import ssl
import subprocess
import sys
import uuid as uuids
from contextlib import ExitStack, contextmanager

import gevent
from common import Origin, Stage, ask, print_row, stage, until
from conftest import OK, Peer, connect_request, get
from gevent.pool import Pool
from processes import memory_bytes

from rendezvous.server.worker import TRIM_SECONDS
from rendezvous.wire import codes

ENTRIES = 50
LOOKS, LOOK_SECONDS = 25, 0.2  # one every so often
SLOW_SECONDS, SLOW_CONNECTIONS = 12, 300
SLOW = {
    'slow headers': '-H -i 2',
    'slow bodies': '-B -i 2 -s 60000',
    'range headers': '-R -a 1 -b 3000',
    'slow reading': '-X -w 1 -y 16 -n 2 -z 16 -k 3',
}


class Crowd:
    """Connections to the server, in this process."""

    def __init__(self, on: Stage):
        entries = on.entries()
        self._on, self._pool = on, Pool(20)
        self._entries = [entries.add(str(uuids.uuid4()), ['load']) for _ in range(ENTRIES)]
        entries.close()
        self.peers: list[Peer] = []

    def connect(self) -> socket.socket:
        sock = socket.create_connection((self._on.host, self._on.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def peer(self) -> Peer:
        self.peers.append(
            Peer(self._on.context.wrap_socket(self.connect(), server_hostname=self._on.host))
        )
        return self.peers[-1]

    def register(self, number: int) -> None:
        entry, peer = self._entries[number % ENTRIES], self.peer()
        code = codes.totp(entry['authParams']).now()
        peer.send(connect_request(entry['uuid'], code))
        assert peer.receive(len(OK)) == OK

    def pipe(self, number: int) -> None:
        """A mobile client that has sent the beginning of a long upload."""
        uuid = self._entries[number % ENTRIES]['uuid']
        self.peer().send(get(uuid, '/', 'POST', 'Content-Length: 1000000') + bytes(1000))

    def each(self, do, count: int) -> None:
        self._pool.map(do, range(count))

    def leave(self) -> None:
        for peer in self.peers:
            peer.close()
        self.peers = []


@contextmanager
def half_handshakes(crowd: Crowd, a_second: int = 200):
    """A ClientHello each, and nothing after it."""
    hello = client_hello()
    with ExitStack() as stack:

        def flood() -> None:
            while True:
                stack.enter_context(crowd.connect()).sendall(hello)
                gevent.sleep(1 / a_second)

        greenlet = gevent.spawn(flood)
        yield
        greenlet.kill()


def client_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname='x')
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()


@contextmanager
def dripping_bodies(on: Stage, crowd: Crowd):
    """slowhttptest asks for the end of the connection, and gets it before the body."""
    with ExitStack() as stack:

        def drip(sock) -> None:
            sock.sendall(b'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n')
            while True:
                gevent.sleep(1)
                sock.sendall(b'x')

        socks = [
            stack.enter_context(on.context.wrap_socket(crowd.connect(), server_hostname=on.host))
            for _ in range(SLOW_CONNECTIONS)
        ]
        greenlets = [gevent.spawn(drip, sock) for sock in socks]
        yield
        gevent.killall(greenlets)


@contextmanager
def silent(crowd: Crowd, count: int = 1000):
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(crowd.connect())
        yield


@contextmanager
def slow(on: Stage, how: str):
    command = f'slowhttptest {how} -c {SLOW_CONNECTIONS} -r 150 -l {SLOW_SECONDS} -p 2'
    quiet = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}
    url = f'https://{on.host}:{on.port}/'
    process = subprocess.Popen([*command.split(), '-u', url], **quiet)
    gevent.sleep(3)  # till they all are there
    yield
    process.terminate()
    process.wait()


def look(on: Stage, uuid: str, what: str, more: str = '') -> None:
    """A row: what a mobile client has to wait."""
    outcomes, most = [], 0
    for _ in range(LOOKS):
        outcomes.append(ask(on, uuid, seconds=20))
        most = max(most, on.inside()['sockets'])
        gevent.sleep(LOOK_SECONDS)
    seconds = [outcome.ended - outcome.began for outcome in outcomes]
    bad = sum(outcome.saw != 'good' for outcome in outcomes)
    print_row(what, f'{bad} bad, {most} connections', seconds, more)


def main() -> None:
    registrations, pipes = [*map(int, sys.argv[1:]), 5000, 500][:2]
    options = {'max_connections': 10_000, 'max_connections_per_address': 0, 'max_waiting': 100_000}
    with stage(**options) as on:
        server, _ = on.serve()
        (mine,) = on.add()['uuid']
        on.hide(mine, Origin())
        before, rest = on.at_rest(4), memory_bytes(on.worker_pids)
        crowd = Crowd(on)
        print_row('', '', [], '')
        look(on, mine, 'nothing else')
        crowd.each(crowd.register, registrations)
        each = (memory_bytes(on.worker_pids) - rest) / registrations / 1000
        look(on, mine, f'{registrations} registrations', f'{each:.1f} KB each')
        crowd.each(crowd.pipe, pipes)
        until(lambda: on.inside()['pipes'] >= pipes, 'they are joined', 60)
        look(on, mine, f'... and {pipes} pipes')
        for what, how in SLOW.items():
            with slow(on, how):
                look(on, mine, f'... and {SLOW_CONNECTIONS} {what}')
        with dripping_bodies(on, crowd):
            look(on, mine, f'... and {SLOW_CONNECTIONS} dripping bodies')
        with half_handshakes(crowd):
            look(on, mine, '... and 200 half handshakes a second')
        with silent(crowd):
            look(on, mine, '... and 1000 that say nothing')
        most = memory_bytes(on.worker_pids)
        crowd.leave()
        left = on.left(before, seconds=90)
        gevent.sleep(TRIM_SECONDS)
        now = memory_bytes(on.worker_pids)
        megabytes = [f'{each / 1e6:.0f} MB' for each in (rest, most, now)]
        print(f'when all have gone: {left or "nothing is left"}; memory {", ".join(megabytes)}')
        assert server.end() == 0


if __name__ == '__main__':
    main()
