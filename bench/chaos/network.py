"""Bad networks: packets that are dropped, half-open middleboxes, a hidden server that has moved.

    .venv/bin/python bench/chaos/network.py [RUNS]

About five minutes for each two runs, for the times of dead peers are the real ones. Dropping
packets needs root, for a network namespace; the rest does without.
"""

from gevent import monkey

monkey.patch_all()

import re
import signal
import sys
import time
from collections import Counter

import gevent
from common import (
    Bystander,
    Mobile,
    Origin,
    Request,
    ask,
    print_row,
    stage,
    until,
    until_good,
    words,
)
from faults import Netspace, Relay, why_not

LARGE_BYTES = 50_000_000
LIFETIME_SECONDS = 5
SHORT_LIVED = (
    'import hidden; from rendezvous.hidden import hidden_server; '
    f'hidden_server.LIFETIME_SECONDS = {LIFETIME_SECONDS}; '
    'hidden.programs.main(hidden.command.main)'
)


def half_a_download(on, uuid: str, origin: Origin, sock=None) -> tuple[Mobile, gevent.Greenlet]:
    origin.flows.clear()
    mobile = Mobile(on, uuid, sock=sock)
    loading = gevent.spawn(mobile.ask, Request(f'd{time.monotonic_ns()}', 0, LARGE_BYTES))
    until(lambda: origin.open, 'the download began')
    gevent.sleep(1)
    return mobile, loading


def hidden_server_vanishes(runs: int) -> None:
    """While it waits, and in the middle of a download; another one goes on."""
    ends, forgotten, cut_off, back, seen = [], [], [], [], Counter()
    with Netspace() as away, stage(rendezvous_host=away.near) as on:
        uuid, other = (on.add(name)['uuid'][0] for name in ('kitchen', 'cellar'))
        on.serve()
        with away.inside():
            origin = Origin()
        on.hide(other, Origin())
        on.hide(uuid, origin, program=away.runs('hidden.py'))
        before, bystander = on.at_rest(8), Bystander(on, other)
        for _ in range(runs):
            _, loading = half_a_download(on, uuid, origin)
            away.drop()
            began = time.monotonic()
            asking = [gevent.spawn(ask, on, uuid, 100, 100) for _ in range(2)]
            until(lambda: on.inside()['registrations'] <= 4, 'they are forgotten', 100)
            forgotten.append(time.monotonic() - began)
            for outcome in [each.get() for each in asking]:
                seen[outcome.saw] += 1
                ends.append(outcome.ended - outcome.began)
            cut_off.append(loading.get().ended - began)
            away.mend()
            origin.flows.set()
            back.append(until_good(on, uuid)[1])
            until(lambda: on.inside()['registrations'] >= 8, 'all wait again', 100)
        more = f'bystander: {bystander.stop()}; left over: {on.left(before, seconds=90)}'
    print_row('hidden server vanished: a request ends', words(seen), ends, more)
    print_row('... its registrations are forgotten', '', forgotten, more)
    print_row('... a download ends', '', cut_off, more)
    print_row('... the network is back: a good answer', '', back, more)


def mobile_client_vanishes(runs: int) -> None:
    """... in the middle of a download: the hidden server is told."""
    took = []
    with Netspace() as away, stage(rendezvous_host=away.near) as on:
        (uuid,) = on.add('kitchen')['uuid']
        on.serve()
        origin = Origin()
        on.hide(uuid, origin)
        before = on.at_rest(4)
        for _ in range(runs):
            with away.inside():
                sock = gevent.socket.socket()
            mobile, loading = half_a_download(on, uuid, origin, sock)
            away.drop()
            origin.flows.set()
            began, ended = time.monotonic(), origin.ended
            until(lambda e=ended: origin.ended > e, 'the hidden server hears of it', 100)
            took.append(time.monotonic() - began)
            loading.kill()
            mobile.close()
            away.mend()
        left = on.left(before, seconds=90)
    print_row('mobile client vanished: a download ends', '', took, f'left over: {left}')


def half_open(runs: int) -> None:
    """A middlebox acknowledges and forwards nothing, for the connections that there are."""
    seen, took = [], []
    with stage(max_waiting=4) as on:
        (uuid,) = on.add('kitchen')['uuid']
        on.serve()
        relay = Relay(('127.0.0.1', on.port))
        hiding = on.hide(uuid, Origin(), relay.port, ('-c', SHORT_LIVED))
        before = on.at_rest(4)
        for _ in range(runs):
            held = relay.hold()
            saw, seconds = until_good(on, uuid, each=1)
            seen.append(saw)
            took.append(seconds)
            until(lambda: sum(link.flows.is_set() for link in relay.links) >= 4, 'new ones', 30)
            for link in held:
                link.cut()
            until(lambda: len(relay.links) == 4, 'the old ones are gone', 30)
        # What the relay cuts off while it registers is not refused: that has a status.
        never = not re.search(r'not registered at \S+: [0-9]{3} |hanging up', hiding.said())
        left = on.left(before)
        relay.stop()
    more = f'hidden.py was never refused: {never}; left over: {left}'
    print_row(
        f'half-open middlebox, lifetime {LIFETIME_SECONDS} s',
        ' / '.join(dict.fromkeys(seen)),
        took,
        more,
    )


def replaced(runs: int) -> None:
    """It comes from a new address, and the connections from the old one are never closed."""
    seen, took, left = Counter(), [], ''
    with stage() as on:
        (uuid,) = on.add('kitchen')['uuid']
        on.serve()
        before = on.inside()
        for _ in range(runs):
            relay, new = Relay(('127.0.0.1', on.port)), Origin()
            hiding = [on.hide(uuid, Origin(), relay.port)]
            on.at_rest(4)
            relay.hold()
            hiding.append(on.hide(uuid, new))
            outcome = ask(on, uuid)
            took.append(outcome.ended - outcome.began)
            seen[f'{outcome.saw} from {"the new" if new.served else "ANOTHER"} one'] += 1
            for program in hiding:
                program.end(signal.SIGKILL)
            relay.stop()
            left += on.left(before)
    print_row('hidden server moved: the next request', words(seen), took, f'left over: {left}')


def main() -> None:
    runs = int(sys.argv[1]) if sys.argv[1:] else 2
    print_row('', 'what mobile clients saw', [], '')
    replaced(5 * runs)
    half_open(2 * runs)
    if reason := why_not():
        sys.exit(f'packets are not dropped here: {reason}')
    hidden_server_vanishes(runs)
    mobile_client_vanishes(runs)


if __name__ == '__main__':
    main()
