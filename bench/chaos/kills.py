"""kill -9 of the server, of Redis and of hidden.py: what a mobile client sees, and for how long.

    .venv/bin/python bench/chaos/kills.py [RUNS]

About a minute for each five runs. The seconds are those to the next good answer.
"""

from gevent import monkey

monkey.patch_all()

import os
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
    free_port,
    listens,
    print_row,
    stage,
    until,
    until_good,
    words,
)
from programs import Outside

LARGE_BYTES = 50_000_000
REDIS_AWAY_SECONDS = 3


def server_killed(runs: int) -> None:
    """... under bin/run.sh, which brings it up again."""
    with stage() as on:
        (uuid,) = on.add('kitchen')['uuid']
        on.run_sh()
        on.hide(uuid, Origin())
        (pid,) = on.server_pids()
        before, seen, down, took = on.at_rest(pid, 4), [], [], []
        for _ in range(runs):
            began = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            until(lambda: not listens(on.port), 'it is dead')
            until(lambda: listens(on.port), 'it listens again', 70)
            down.append(time.monotonic() - began)
            saw, seconds = until_good(on, uuid)
            seen.append(saw)
            took.append(seconds)
            (pid,) = on.server_pids()
        left = f'left over: {on.left(pid, before)}'
    print_row('server killed: the new one listens', 'refused', down, left)
    print_row(
        'server killed: ... and has a good answer', ' / '.join(dict.fromkeys(seen)), took, left
    )


def redis_killed(runs: int) -> None:
    """The embedded one, in the middle of a load."""
    with stage() as on:
        (uuid,) = on.add('kitchen')['uuid']
        server, _ = on.serve()
        on.hide(uuid, Origin())
        before, load, took = on.at_rest(server.pid, 4), Bystander(on, uuid), []
        for _ in range(runs):
            os.kill(on.stores()[0], signal.SIGKILL)
            took.append(until_good(on, uuid)[1])
            gevent.sleep(1)
        saw, left = load.stop(), on.left(server.pid, before)
    print_row('embedded Redis killed', saw, took, f'left over: {left}')


def outside_redis_killed(runs: int) -> None:
    """It is away for a while: the registrations that wait are used up, the next ones refused."""
    with stage(redis_host='127.0.0.1', redis_port=free_port()) as on:
        data = on.path.parent / 'redis'
        data.mkdir()
        with Outside(str(data), on.options['redis_port'], '', '--appendonly', 'yes') as redis:
            (uuid,) = on.add('kitchen')['uuid']
            server, _ = on.serve()
            on.hide(uuid, Origin())
            before, load, took = on.at_rest(server.pid, 4), Bystander(on, uuid), []
            for _ in range(runs):
                redis.stop()
                gevent.sleep(REDIS_AWAY_SECONDS)
                redis.start()
                took.append(until_good(on, uuid)[1])
                gevent.sleep(1)
            saw, left = load.stop(), on.left(server.pid, before)
    print_row(f'Redis outside was away for {REDIS_AWAY_SECONDS} s', saw, took, f'left over: {left}')


def hidden_killed(runs: int, in_pipe: bool) -> None:
    """... and started again at once; another hidden server goes on."""
    with stage() as on:
        uuid, other = (on.add(name)['uuid'][0] for name in ('kitchen', 'cellar'))
        (server, _), origin = on.serve(), Origin()
        on.hide(other, Origin())
        hiding = on.hide(uuid, origin)
        before, bystander = on.at_rest(server.pid, 8), Bystander(on, other)
        seen, took = Counter(), []
        for turn in range(runs):
            if in_pipe:  # a download, half of which has come
                origin.flows.clear()
                request = Request(f'half{turn}', 0, LARGE_BYTES)
                asking = gevent.spawn(Mobile(on, uuid).ask, request)
                until(lambda name=request.name: name in origin.open, 'it has been asked')
                gevent.sleep(0.3)
            killed = time.monotonic()
            hiding.end(signal.SIGKILL)
            origin.flows.set()
            outcome = asking.get() if in_pipe else ask(on, uuid, seconds=0.2)
            seen[f'{outcome.saw} ({outcome.ended - killed:.0f} s)'] += 1
            hiding = on.start('hidden.py', *hiding.process.args[2:])
            took.append(until_good(on, uuid)[1])
        more = f'bystander: {bystander.stop()}; left over: {on.left(server.pid, before)}'
    where = 'in a pipe' if in_pipe else 'while it waits'
    print_row(f'hidden.py killed {where}, and started', words(seen), took, more)


def main() -> None:
    runs = int(sys.argv[1]) if sys.argv[1:] else 5
    print_row('', 'what mobile clients saw', [], '')
    server_killed(runs)
    redis_killed(runs)
    outside_redis_killed(runs)
    hidden_killed(runs, in_pipe=False)
    hidden_killed(runs, in_pipe=True)


if __name__ == '__main__':
    main()
