"""What laptops and home lines do to hidden.py, and how soon it waits again once that is possible.

    .venv/bin/python bench/chaos/laptop.py

About three minutes. It needs root, for a network namespace and for files of /etc of its own.
"""

from gevent import monkey

monkey.patch_all()

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack

import gevent
from common import Origin, print_row, stage, until
from faults import Netspace, why_not
from gevent.server import DatagramServer
from test_dial import answers_no_syn

DEAD_SECONDS = 75  # after 60 a connection is dead on both sides
NAME = 'rendezvous.example'


def waits(on) -> float:
    """Seconds until one that was made since now waits."""
    began, before = time.monotonic(), on.log().count(' registered ')
    until(lambda: on.log().count(' registered ') > before, 'it registers', 60)
    return time.monotonic() - began


def network_gone() -> None:
    """For longer than connections live; and for a moment, and it comes from another address."""
    with Netspace() as away, stage(rendezvous_host=away.near) as on:
        (uuid,) = on.add('kitchen')['uuid']
        on.serve()
        on.hide(uuid, Origin(), program=away.runs('hidden.py'))
        on.at_rest(4)
        away.drop()
        gevent.sleep(DEAD_SECONDS)
        away.mend()
        print_row(f'network gone for {DEAD_SECONDS} s', '', [waits(on)], '')
        on.at_rest(4)
        away.drop()
        gevent.sleep(5)
        other = on_the_same_cable(away)
        print_row('... back at another address', '', [waits(on)], f'from {other}')


def on_the_same_cable(away: Netspace) -> str:
    """Gives the namespace another address, and mends the cable."""
    other = away.near.rsplit('.', 1)[0] + '.254'
    under = 'nsenter', '-t', str(away._holder.pid), '-n'
    for command in (
        ('ip', 'route', 'add', other, 'dev', away._cable),
        (*under, 'ip', 'addr', 'del', f'{away.far}/30', 'dev', 'eth0'),
        (*under, 'ip', 'addr', 'add', f'{other}/24', 'dev', 'eth0'),
    ):
        subprocess.run(command, check=True)
    away.mend()
    permanent = 'ip', 'neigh', 'replace', other, 'lladdr', away._far_mac, 'nud', 'permanent'
    subprocess.run([*permanent, 'dev', away._cable], check=True)
    return other


def suspended() -> None:
    """Its connections are reset meanwhile, and nobody tells it: the system keeps no state."""
    with stage() as on:
        (uuid,) = on.add('kitchen')['uuid']
        on.serve()
        hiding = on.hide(uuid, Origin())
        on.at_rest(4)
        os.killpg(hiding.pid, signal.SIGSTOP)
        gevent.sleep(15)
        os.killpg(hiding.pid, signal.SIGCONT)
        print_row('suspended for 15 s', '', [waits(on)], '')


def two_addresses() -> None:
    """One answers no SYN; /etc/hosts names both."""
    with stage(rendezvous_host=NAME, listen_host='127.0.0.2') as on, ExitStack() as stack:
        stack.enter_context(answers_no_syn('127.0.0.1', on.port))
        (uuid,) = on.add('kitchen')['uuid']
        on.serve()
        (on.path / 'hosts').write_text(f'127.0.0.2 {NAME}\n127.0.0.1 {NAME} localhost\n')
        began = time.monotonic()
        hiding = on.hide(uuid, Origin(), program=with_etc(on, 'hosts'))
        on.at_rest(4)
        seconds = time.monotonic() - began
        said = 'did not answer' in hiding.said()
        print_row('one of two addresses is silent: four wait', '', [seconds], f'said: {said}')


def with_etc(on, *names: str) -> tuple[str, ...]:
    """hidden.py with files of its own instead of those of /etc."""
    binds = '; '.join(f'mount --bind "{on.path}/{name}" /etc/{name}' for name in names)
    command = f'{binds}; exec "{sys.executable}" hidden.py "$@"'
    arguments = ['unshare', '-m', 'sh', '-c', command, 'sh']
    return '-c', f'import os, sys; os.execvp("unshare", {arguments!r} + sys.argv[1:])'


class Names(DatagramServer):
    """A name server that answers nothing until it is told to, then 127.0.0.1 to everything."""

    answers = False

    def handle(self, query: bytes, address) -> None:
        if self.answers:
            is_a = query.endswith(b'\0\0\1\0\1')
            head = query[:2] + b'\x81\x80\0\1' + (b'\0\1' if is_a else b'\0\0') + bytes(4)
            record = b'\xc0\x0c\0\1\0\1' + bytes(4) + b'\0\4' + socket.inet_aton('127.0.0.1')
            self.socket.sendto(head + query[12:] + (record if is_a else b''), address)


def no_names() -> None:
    """From the start, and for longer than one question takes."""
    with stage(rendezvous_host=NAME, listen_host='127.0.0.1') as on:
        names, took = Names('127.0.0.53:53'), []
        names.start()
        (uuid,) = on.add('kitchen')['uuid']
        on.serve()
        (on.path / 'resolv.conf').write_text('nameserver 127.0.0.53\n')
        (on.path / 'hosts').write_text('127.0.0.1 localhost\n')
        for seconds in (6, 7.5, 9, 10.5):
            names.answers = False
            entry = on.path / 'entries' / f'{uuid}.json'
            program = with_etc(on, 'hosts', 'resolv.conf')
            hiding = on.start(*program, str(entry), Origin(uuid).address)
            gevent.sleep(seconds)
            names.answers = True
            took.append(waits(on))
            hiding.end()
        names.stop()
        print_row('names did not resolve', '', took, '')


def server_gone() -> None:
    with stage() as on:
        (uuid,) = on.add('kitchen')['uuid']
        on.serve()
        on.hide(uuid, Origin())
        took = []
        for seconds in (1, 5, 20):
            os.kill(on.parent, signal.SIGKILL)
            gevent.sleep(seconds)
            on.serve()
            took.append(waits(on) if on.inside()['registrations'] == 0 else 0)
        print_row('server gone for 1, 5 and 20 s', '', took, '')


def main() -> None:
    if reason := why_not():
        sys.exit(f'no networks of our own: {reason}')
    print_row('', '', [], '')
    two_addresses()
    no_names()
    suspended()
    server_gone()
    network_gone()


if __name__ == '__main__':
    main()
