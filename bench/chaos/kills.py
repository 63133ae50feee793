"""kill -9 of a worker, of the server, of Redis, of hidden.py: what a mobile client sees, how long.

    .venv/bin/python bench/chaos/kills.py [RUNS]

About four minutes for five runs. The seconds are those to the next good answer.
"""

from gevent import monkey

monkey.patch_all()

import os
import signal
import socket
import sys
import time
from collections import Counter
from contextlib import suppress

import gevent
from common import (
    Bystander,
    Mobile,
    Origin,
    Outcome,
    Request,
    Stage,
    ask,
    free_port,
    print_row,
    stage,
    until,
    until_good,
    words,
)
from processes import connections, stop
from programs import Outside, listens

LARGE_BYTES = 50_000_000
REDIS_AWAY_SECONDS = 3
CLIENTS = 4
# As systemd does.
RESTARTS = 'import subprocess, time\nwhile True: subprocess.run("bin/run.sh"); time.sleep({})'
AWAY_SECONDS = 1, 10, 60


def worker_killed(runs: int) -> None:
    """... under load. A request fails only where its own connection, or that of its hidden server,
    was the worker's; what is asked next is answered by the others.
    """
    with stage() as on:
        uuids = [on.add(name)['uuid'][0] for name in ('kitchen', 'cellar')]
        on.serve()
        for uuid in uuids:
            on.hide(uuid, Origin())
        before, outcomes, theirs, next_ones = on.at_rest(8), [], set(), []
        load = [gevent.spawn(asks_on, on, uuids[number % 2], outcomes) for number in range(CLIENTS)]
        for run in range(runs):
            gevent.sleep(1)
            worker = on.worker_pids[run % 2]
            stop(worker)  # while it does nothing, its connections stay what they are
            theirs |= {port for _, port in connections(worker)}
            theirs |= {mobile for _, pid, mobile, _ in on.joined()[-50:] if pid == worker}
            os.kill(worker, signal.SIGKILL)
            next_ones.append(ask(on, uuids[run % 2], seconds=15))
            on.until_all_workers_serve()
        gevent.killall(load)
        left = f'left over: {on.left(before)}'
    bad = [each for each in outcomes if each.saw != 'good']
    foreign = sum(each.port not in theirs for each in bad)
    saw = words(Counter(each.saw for each in outcomes))
    took = [each.ended - each.began for each in outcomes]
    print_row('worker killed: requests', saw, took, f'{foreign} failed elsewhere; {left}')
    saw = words(Counter(each.saw for each in next_ones))
    took = [each.ended - each.began for each in next_ones]
    print_row('worker killed: ... the next one', saw, took, left)


def asks_on(on: Stage, uuid: str, outcomes: list[Outcome]) -> None:
    while True:
        outcomes.append(ask(on, uuid, 1000, 100_000, seconds=15))
        gevent.sleep(0.01)


def server_killed(runs: int, away: int) -> None:
    """The parent, and with it everything; what started it starts it again, after so many seconds.

    It is back when it accepts: the system takes connections for it while its workers still start.
    """
    with stage() as on:
        (uuid,) = on.add('kitchen')['uuid']
        on.serve('-c', RESTARTS.format(away))
        on.hide(uuid, Origin())
        before, seen, down, took = on.at_rest(4), [], [], []
        for _ in range(runs):
            os.kill(on.parent, signal.SIGKILL)
            until(lambda: not listens(on.port), 'it is dead')
            began = time.monotonic()
            until(lambda: accepts(on), 'it accepts again', away + 70)
            down.append(time.monotonic() - began)
            saw, seconds = until_good(on, uuid)
            seen.append(saw)
            took.append(seconds)
            on.at_rest(4)
        left = f'left over: {on.left(before)}'
    fault = f'server killed, started after {away} s'
    print_row(f'{fault}: it accepts', 'refused', down, left)
    print_row('... and has a good answer', ' / '.join(dict.fromkeys(seen)), took, left)


def accepts(on: Stage) -> bool:
    """Whether a handshake succeeds."""
    with suppress(OSError), socket.create_connection((on.host, on.port)) as sock:
        on.context.wrap_socket(sock, server_hostname=on.host).close()
        return True
    return False


def redis_killed(runs: int) -> None:
    """The embedded one, in the middle of a load."""
    with stage() as on:
        (uuid,) = on.add('kitchen')['uuid']
        on.serve()
        on.hide(uuid, Origin())
        before, load, took = on.at_rest(4), Bystander(on, uuid), []
        for _ in range(runs):
            os.kill(on.stores()[0], signal.SIGKILL)
            took.append(until_good(on, uuid)[1])
            gevent.sleep(1)
        saw, left = load.stop(), on.left(before)
    print_row('embedded Redis killed', saw, took, f'left over: {left}')


def outside_redis_killed(runs: int) -> None:
    """It is away for a while: the registrations that wait are used up, the next ones refused."""
    with stage(redis_host='127.0.0.1', redis_port=free_port()) as on:
        data = on.path.parent / 'redis'
        data.mkdir()
        with Outside(str(data), on.options['redis_port'], '', '--appendonly', 'yes') as redis:
            (uuid,) = on.add('kitchen')['uuid']
            on.serve()
            on.hide(uuid, Origin())
            before, load, took = on.at_rest(4), Bystander(on, uuid), []
            for _ in range(runs):
                redis.stop()
                gevent.sleep(REDIS_AWAY_SECONDS)
                redis.start()
                took.append(until_good(on, uuid)[1])
                gevent.sleep(1)
            saw, left = load.stop(), on.left(before)
    print_row(f'Redis outside was away for {REDIS_AWAY_SECONDS} s', saw, took, f'left over: {left}')


def hidden_killed(runs: int, in_pipe: bool) -> None:
    """... and started again at once; another hidden server goes on."""
    with stage() as on:
        uuid, other = (on.add(name)['uuid'][0] for name in ('kitchen', 'cellar'))
        on.serve()
        origin = Origin()
        on.hide(other, Origin())
        hiding = on.hide(uuid, origin)
        before, bystander = on.at_rest(8), Bystander(on, other)
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
        more = f'bystander: {bystander.stop()}; left over: {on.left(before)}'
    where = 'in a pipe' if in_pipe else 'while it waits'
    print_row(f'hidden.py killed {where}, and started', words(seen), took, more)


def main() -> None:
    runs = int(sys.argv[1]) if sys.argv[1:] else 5
    print_row('', 'what mobile clients saw', [], '')
    worker_killed(runs)
    for away in AWAY_SECONDS:
        server_killed(max(1, min(runs, 60 // away)), away)
    redis_killed(runs)
    outside_redis_killed(runs)
    hidden_killed(runs, in_pipe=False)
    hidden_killed(runs, in_pipe=True)


if __name__ == '__main__':
    main()
