"""New workers take over from those with thousands of registrations: how long everybody waits.

    .venv/bin/python bench/chaos/comeback.py [REGISTRATIONS]

They are those of another process, which comes back at once when one of them is ended, as hidden.py
does. Prints what a mobile client has to wait meanwhile, and one that is only asked who it is. 4000
of them take about two minutes.
"""

from gevent import monkey

monkey.patch_all()

import json
import ssl
import subprocess
import sys
import time
import uuid as uuids

import gevent
from common import Origin, Stage, ask, print_row, stage, until
from conftest import OK, Peer, connect_request
from gevent import socket
from gevent.lock import Semaphore

from rendezvous.wire import codes

ENTRIES = 500
LOOK_SECONDS = 0.05
SECONDS = 100  # that the old workers may take


def connected(context: ssl.SSLContext, port: int) -> Peer:
    sock = socket.create_connection(('127.0.0.1', port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Peer(context.wrap_socket(sock, server_hostname='127.0.0.1'))


def crowd(port: int, certificate: str, count: int) -> None:
    """The other process: prints how often it has registered."""
    context, entries = ssl.create_default_context(cafile=certificate), json.load(sys.stdin)
    at_once, registered = Semaphore(20), [0]

    def live(number: int) -> None:
        entry = entries[number % len(entries)]
        while True:
            try:
                with at_once if registered[0] < count else Semaphore():
                    peer = connected(context, port)
                    peer.send(connect_request(entry['uuid'], codes.totp(entry['authParams']).now()))
                    assert peer.receive(len(OK)) == OK
                registered[0] += 1
                peer.sock.recv(1)
                peer.close()
            except (OSError, AssertionError):
                gevent.sleep(0.1)

    for number in range(count):
        gevent.spawn(live, number)
    while True:
        gevent.sleep(0.2)
        print(registered[0], flush=True)


def made(on: Stage) -> list[dict]:
    entries = on.entries()
    found = [entries.add(str(uuids.uuid4()), ['crowd']) for _ in range(ENTRIES)]
    entries.close()
    return found


def who(on: Stage) -> float:
    """The seconds until a mobile client is asked who it is."""
    began = time.monotonic()
    peer = connected(on.context, on.port)
    peer.send(b'GET / HTTP/1.1\r\nHost: x\r\n\r\n')
    assert peer.answer().status == 401
    peer.close()
    return time.monotonic() - began


class Looks:
    """What there is to wait, looked at all the time."""

    def __init__(self, on: Stage, uuid: str):
        self.outcomes, self.asked = [], []
        self._greenlets = [
            gevent.spawn(self._every, self.outcomes, lambda: ask(on, uuid, seconds=20)),
            gevent.spawn(self._every, self.asked, lambda: who(on)),
        ]

    def _every(self, found: list, look) -> None:
        while True:
            found.append(look())
            gevent.sleep(LOOK_SECONDS)

    def stop(self, what: str) -> None:
        gevent.killall(self._greenlets)
        seconds = [outcome.ended - outcome.began for outcome in self.outcomes]
        bad = sum(outcome.saw != 'good' for outcome in self.outcomes)
        print_row(f'{what}: a request', f'{bad} bad', seconds, '')
        print_row(f'{what}: who is it', '', self.asked, '')


def main(count: int) -> None:
    options = {'max_connections': 2 * count + 1000, 'max_waiting': 100_000}
    with stage(**options) as on:
        on.serve()
        (mine,) = on.add()['uuid']
        on.hide(mine, Origin())
        command = [sys.executable, __file__, 'crowd', str(on.port)]
        command += [str(on.path / 'registrar.crt'), str(count)]
        pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
        with subprocess.Popen(command, **pipes) as process:
            json.dump(made(on), process.stdin)
            process.stdin.close()
            while int(process.stdout.readline()) < count:
                pass
            print_row('', '', [], '')
            looks = Looks(on, mine)
            gevent.sleep(3)
            looks.stop('nothing else')
            looks, began = Looks(on, mine), time.monotonic()
            old = on.workers()
            on.renew()
            while int(process.stdout.readline()) < 2 * count:
                pass
            print(f'all are back after {time.monotonic() - began:.1f} s')
            looks.stop(f'{count} come back')
            process.kill()
        until(lambda: not {*old} & {*on.workers()}, 'the old ones end', SECONDS)


if __name__ == '__main__':
    if sys.argv[1:2] == ['crowd']:
        crowd(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else 4000)
