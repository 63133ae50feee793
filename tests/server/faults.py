"""Bad networks: a relay that can be a middlebox of the worst kind, a cable that drops packets."""

import ctypes
import os
import socket
import struct
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import gevent
from gevent.event import Event
from gevent.pool import Pool
from gevent.server import StreamServer

CHUNK_BYTES = 64 * 1024
CLONE_NEWNET = 0x40000000
NOBODY = '02:00:00:00:00:99'


def linger_not(sock) -> None:
    """Its close is an RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))


class Link:
    """One connection through a relay."""

    def __init__(self, near, far):
        self.socks = near, far
        # That of the client as the relay sees it, and that of the relay as the server sees it.
        self.near_port, self.far_port = near.getpeername()[1], far.getsockname()[1]
        self.born, self.hits = time.monotonic(), []
        self.flows = Event()  # cleared: acknowledges, and forwards nothing
        self.flows.set()
        self.resets = False
        pairs = self.socks, self.socks[::-1]
        self._greenlets = [gevent.spawn(self._copy, *pair) for pair in pairs]

    def _copy(self, source, sink) -> None:
        try:
            while more := source.recv(CHUNK_BYTES):
                self.flows.wait()
                sink.sendall(more)
            self.flows.wait()
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            self.resets = True
            gevent.killall(self._greenlets, block=False)

    def cut(self, reset: bool = True) -> None:
        """Ends it on both sides, by an RST or by a FIN."""
        self.hits.append(time.monotonic())
        self.resets = self.resets or reset
        gevent.killall(self._greenlets, block=False)

    def live(self) -> None:
        try:
            gevent.joinall(self._greenlets)
        finally:  # the relay may be stopped in this moment
            for sock in self.socks:
                with suppress(OSError):
                    if self.resets:
                        linger_not(sock)
                sock.close()


class Relay:
    """A middlebox between hidden servers and the server."""

    def __init__(self, address: tuple[str, int]):
        self._address, self.flows = address, Event()
        self.links: list[Link] = []  # that there are
        self.history: list[Link] = []
        self.flows.set()
        self._server = StreamServer(('127.0.0.1', 0), self._handle, spawn=Pool(None))
        self._server.start()
        self.port = self._server.server_port

    def _handle(self, sock, _) -> None:
        self.flows.wait()  # a network that is gone lets no new ones through, too
        try:
            link = Link(sock, socket.create_connection(self._address))
        except OSError:  # there is no server now, or the hidden server has left
            sock.close()
            return
        except gevent.GreenletExit:  # it is stopped in this moment
            sock.close()
            raise
        self.links.append(link)
        self.history.append(link)
        link.live()
        self.links.remove(link)

    def hold(self) -> list[Link]:
        """All that are there now go half-open; new ones are as they should be."""
        for link in self.links:
            link.flows.clear()
        return list(self.links)

    def stop(self) -> None:
        for link in list(self.links):
            link.cut()
        self._server.stop(timeout=0)


def why_not() -> str:
    """Why there is none on this machine; '' where there is."""
    if os.geteuid():
        return 'a network namespace needs root'
    for command in (['unshare', '-n', 'ip', 'link'], ['ip', '-br', 'link']):
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode:
            return f'{" ".join(command)}: {ran.stderr.strip()}'
    return ''


def shell(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Netspace:
    """A network namespace of our own, and a cable to it that drops each packet while it is told to.

    Nobody hears of that: no RST, no ICMP, no link that is down. A frame goes out to a hardware
    address that nobody has. `near` is our address on the cable, `far` the one in the namespace."""

    def __enter__(self):
        number = os.getpid() % 16384
        self._cable = f'chaos{number}'
        net = f'198.18.{number // 64}.{number % 64 * 4}'  # RFC 2544: for tests, nobody's address
        start, last = net.rsplit('.', 1)
        self.near, self.far = f'{start}.{int(last) + 1}', f'{start}.{int(last) + 2}'
        holder = ['setpriv', '--pdeathsig', 'KILL', 'unshare', '-n', 'sh', '-c']
        self._holder = subprocess.Popen(
            [*holder, 'echo; exec sleep infinity'], stdout=subprocess.PIPE, cwd='/'
        )
        self._holder.stdout.readline()
        self._connect()
        return self

    def _connect(self) -> None:
        cable, pid = self._cable, str(self._holder.pid)
        shell('ip', 'link', 'add', cable, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', pid)
        shell('ip', 'addr', 'add', f'{self.near}/30', 'dev', cable)
        shell('ip', 'link', 'set', cable, 'up')
        for what in ('link set lo up', f'addr add {self.far}/30 dev eth0', 'link set eth0 up'):
            shell(*self._under, 'ip', *what.split())
        self._near_mac = shell('cat', f'/sys/class/net/{cable}/address').strip()
        self._far_mac = shell(*self._under, 'ip', '-br', 'link', 'show', 'eth0').split()[2]
        self.mend()

    @property
    def _under(self) -> tuple[str, ...]:
        return 'nsenter', '-t', str(self._holder.pid), '-n'

    def runs(self, *arguments: str) -> tuple[str, ...]:
        """What Folder.start is to start, so that a program runs in there."""
        command = [*self._under, sys.executable, *arguments]
        return '-c', f'import os, sys; os.execvp("nsenter", {command!r} + sys.argv[1:])'

    @contextmanager
    def inside(self):
        """Sockets that are made meanwhile are in the namespace, for ever; nothing may yield."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open('/proc/self/ns/net') as here, open(f'/proc/{self._holder.pid}/ns/net') as there:
            assert not libc.setns(there.fileno(), CLONE_NEWNET)
            try:
                yield
            finally:
                assert not libc.setns(here.fileno(), CLONE_NEWNET)

    def drop(self) -> None:
        self._send_to(NOBODY, NOBODY)

    def mend(self) -> None:
        self._send_to(self._near_mac, self._far_mac)

    def _send_to(self, near_mac: str, far_mac: str) -> None:
        permanent = 'ip', 'neigh', 'replace', 'nud', 'permanent'
        shell(*permanent, self.far, 'lladdr', far_mac, 'dev', self._cable)
        shell(*self._under, *permanent, self.near, 'lladdr', near_mac, 'dev', 'eth0')

    def __exit__(self, *_) -> None:
        self._holder.kill()
        self._holder.wait()
        self._holder.stdout.close()
        subprocess.run(['ip', 'link', 'del', self._cable], capture_output=True)
