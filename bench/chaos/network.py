"""Bad networks: packets that are dropped, half-open middleboxes, a hidden server that has moved.

    .venv/bin/python bench/chaos/network.py [RUNS]

About five minutes for each two runs, for the times of dead peers are the real ones. Dropping
packets needs root, for a network namespace; the rest does without.
"""

import sys
import time

import gevent
from common import (
    Bystander,
    Mobile,
    Origin,
    Request,
    ask,
    print_head,
    print_row,
    stage,
    until,
    until_good,
)
from faults import Netspace, Relay, why_not

LARGE_BYTES = 50_000_000
LIFETIME_SECONDS = 5
SHORT_LIVED = (
    'import sys, runpy; from gevent import monkey; monkey.patch_all(); import hidden, options; '
    f'hidden.LIFETIME_SECONDS = {LIFETIME_SECONDS}; options.main(hidden.main)'
)


def vanishes(runs: int) -> None:
    """The hidden server's packets are dropped: while it waits, and in the middle of a download."""
    saw, took, forgotten, cut_off, back, left = [], [], [], [], [], []
    with Netspace() as away, stage(rendezvous_host=away.near) as on:
        uuids = [on.add(name)['uuid'][0] for name in ('kitchen', 'cellar')]
        server, origin = on.serve()[0], Origin()
        with away.inside():
            origin_there = Origin()
        on.hide(uuids[1], Origin())
        on.hide(uuids[0], origin_there, under=away.runs('hidden.py'))
        before, bystander = on.at_rest(server.pid, 8), Bystander(on, uuids[1])
        for _ in range(runs):
            origin_there.pause.clear()
            download = Request(f'd{time.monotonic_ns()}', 0, LARGE_BYTES)
            loading = gevent.spawn(Mobile(on, uuids[0]).ask, download)
            until(lambda name=download.name: name in origin_there.open, 'the download began')
            gevent.sleep(1)
            away.drop()
            began = time.monotonic()
            asking = [gevent.spawn(ask, on, uuids[0], 100, 100) for _ in range(2)]
            until(lambda: on.left(server.pid)['registrations'] <= 4, 'they are forgotten', 100)
            forgotten.append(time.monotonic() - began)
            for outcome in [each.get() for each in asking]:
                saw.append(outcome.saw)
                took.append(outcome.ended - outcome.began)
            cut_off.append(loading.get().ended - began)
            away.mend()
            origin_there.pause.set()
            _, seconds = until_good(on, uuids[0])
            back.append(seconds)
            until(lambda: on.left(server.pid)['registrations'] >= 8, 'all wait again', 100)
        bystander.stop()
        left.append(on.until_as_before(server.pid, before, 90))
        print_row('hidden server vanished: request ends after', saw, took, left)
        print_row('hidden server vanished: forgotten after', ['-'] * runs, forgotten, left)
        print_row('hidden server vanished: download ends after', ['-'] * runs, cut_off, left)
        print_row(f'the network is back ({bystander})', ['-'] * runs, back, left)


def mobile_vanishes(runs: int) -> None:
    """The mobile client's packets are dropped in the middle of a download: who serves it is told."""
    took, left = [], []
    with Netspace() as away, stage(rendezvous_host=away.near) as on:
        (uuid,) = on.add('kitchen')['uuid']
        server, origin = on.serve()[0], Origin()
        on.hide(uuid, origin)
        before = on.at_rest(server.pid, 4)
        for _ in range(runs):
            with away.inside():
                sock = gevent.socket.socket()
            origin.pause.clear()
            mobile = Mobile(on, uuid, sock=sock)
            loading = gevent.spawn(mobile.ask, Request(f'd{time.monotonic_ns()}', 0, LARGE_BYTES))
            until(lambda: origin.open, 'the download began')
            gevent.sleep(1)
            away.drop()
            origin.pause.set()
            began, ended = time.monotonic(), origin.ended
            until(lambda e=ended: origin.ended > e, 'the hidden server hears of it', 100)
            took.append(time.monotonic() - began)
            loading.kill()
            mobile.close()
            away.mend()
        left.append(on.until_as_before(server.pid, before, 90))
    print_row('mobile client vanished: download ends after', ['-'] * runs, took, left)


def half_open(runs: int) -> None:
    """A middlebox acknowledges and forwards nothing, for the connections that there are."""
    saw, took, left = [], [], []
    with stage(max_waiting=4) as on:
        (uuid,) = on.add('kitchen')['uuid']
        server, relay, origin = on.serve()[0], Relay(('127.0.0.1', on.port)), Origin()
        hiding = on.hide(uuid, origin, port=relay.port, under=('-c', SHORT_LIVED))
        before = on.at_rest(server.pid, 4)
        for _ in range(runs):
            held = relay.hold()
            seen, seconds = until_good(on, uuid, each=1)
            saw.append(seen)
            took.append(seconds)
            until(lambda: len(relay.links) >= len(held) + 4, 'all are replaced', 30)
            for link in held:
                link.cut()
            until(lambda: len(relay.links) == 4, 'the old ones are gone', 30)
        said = hiding.said()
        refused = 'refused' if 'not registered' in said or 'hanging up' in said else 'never refused'
        left.append(on.until_as_before(server.pid, before))
        relay.stop()
    print_row(f'half-open middlebox, lifetime {LIFETIME_SECONDS} s ({refused})', saw, took, left)


def replaced(runs: int) -> None:
    """It comes from a new address, and the connections from the old one are never closed."""
    saw, took, left = [], [], []
    with stage() as on:
        (uuid,) = on.add('kitchen')['uuid']
        server = on.serve()[0]
        for _ in range(runs):
            relay, old, new = Relay(('127.0.0.1', on.port)), Origin('old'), Origin('new')
            before = on.at_rest(server.pid, 0)
            first = on.hide(uuid, old, port=relay.port)
            on.at_rest(server.pid, 4)
            relay.hold()
            second = on.hide(uuid, new)
            began = time.monotonic()
            outcome = ask(on, uuid)
            took.append(time.monotonic() - began)
            saw.append(outcome.saw + (' from the new one' if new.ports else ' from the old one'))
            second.end()
            first.end()
            relay.stop()
            left.append(on.until_as_before(server.pid, before))
    print_row('hidden server replaced: the very next request', saw, took, left)


def main() -> None:
    runs = int(sys.argv[1]) if sys.argv[1:] else 2
    print_head()
    replaced(5 * runs)
    half_open(2 * runs)
    if reason := why_not():
        sys.exit(f'not tried: packets that are dropped ({reason})')
    vanishes(runs)
    mobile_vanishes(runs)


if __name__ == '__main__':
    main()
