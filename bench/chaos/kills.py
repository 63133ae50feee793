"""kill -9 of the server, of Redis and of hidden.py: what a mobile client sees, and for how long.

    .venv/bin/python bench/chaos/kills.py [RUNS]

About a minute for each five runs. Seconds are those from the fault to the next good answer, and for
the server those from the moment in which the new process listens, too.
"""

import os
import signal
import sys
import time

from common import (
    Bystander,
    Mobile,
    Origin,
    Outcome,
    Request,
    Stage,
    ask,
    free_port,
    gevent,
    listens,
    print_head,
    print_row,
    stage,
    until,
    until_good,
)
from programs import Outside

LARGE_BYTES = 50_000_000
REDIS_DOWN_SECONDS = 3


def server_killed(runs: int) -> None:
    """... under bin/run.sh, which brings it up again."""
    with stage() as on:
        (uuid,) = on.add('kitchen')['uuid']
        on.run_sh()
        on.hide(uuid, Origin())
        before = on.at_rest(*on.server_pids(), 4)
        saw, since_fault, since_listening, left = [], [], [], []
        for _ in range(runs):
            began = time.monotonic()
            (pid,) = on.server_pids()
            os.kill(pid, signal.SIGKILL)
            until(lambda pid=pid: pid not in on.server_pids(), 'it is dead')
            until(lambda: listens(on.port), 'it listens again', 70)
            down = time.monotonic() - began
            seen, seconds = until_good(on, uuid)
            saw.append(f'refused, then {seen}')
            since_fault.append(down + seconds)
            since_listening.append(seconds)
            left.append(on.until_as_before(*on.server_pids(), before))
        print_row('server killed: since the kill', saw, since_fault, left)
        print_row('server killed: since the new one listens', saw, since_listening, left)


def redis_killed(runs: int) -> None:
    with stage() as on:
        (uuid,) = on.add('kitchen')['uuid']
        server, _ = on.serve()
        on.hide(uuid, Origin())
        before, bystander = on.at_rest(server.pid, 4), Bystander(on, uuid)
        saw, took, left = [], [], []
        for _ in range(runs):
            os.kill(on.stores()[0], signal.SIGKILL)
            seen, seconds = until_good(on, uuid)
            saw.append(seen)
            took.append(seconds)
            gevent.sleep(1)
        bystander.stop()
        left.append(on.until_as_before(server.pid, before))
        print_row(f'embedded Redis killed ({bystander})', saw, took, left)


def outside_redis_killed(runs: int) -> None:
    """It is away for a while: the registrations that wait are used up, the next ones refused."""
    with stage(redis_port=free_port()) as on:
        data = on.path.parent / 'redis'
        data.mkdir()
        redis = Outside(str(data), on.options['redis_port'], '', '--appendonly', 'yes')
        try:
            (uuid,) = on.add('kitchen')['uuid']
            server, _ = on.serve()
            on.hide(uuid, Origin())
            before, saw, took, left = on.at_rest(server.pid, 4), [], [], []
            for _ in range(runs):
                bystander, began = Bystander(on, uuid), time.monotonic()
                redis.stop()
                gevent.sleep(REDIS_DOWN_SECONDS)
                redis.start()
                seen, _ = until_good(on, uuid)
                took.append(time.monotonic() - began - REDIS_DOWN_SECONDS)
                gevent.sleep(1)
                bystander.stop()
                saw.append(f'{seen} ({bystander})')
            left.append(on.until_as_before(server.pid, before))
            print_row(f'outside Redis away for {REDIS_DOWN_SECONDS} s', saw, took, left)
        finally:
            redis.stop()


def half_an_answer(on: Stage, uuid: str, origin: Origin) -> gevent.Greenlet:
    """A download that is under way and goes no further."""
    origin.pause.clear()
    request = Request(f'half{time.monotonic_ns()}', 0, LARGE_BYTES)
    asking = gevent.spawn(Mobile(on, uuid).ask, request)
    until(lambda: request.name in origin.open, 'it has been asked')
    gevent.sleep(0.3)
    return asking


def hidden_killed(runs: int, mid_pipe: bool) -> None:
    """... and started again at once; another hidden server goes on."""
    with stage() as on:
        uuids = [on.add(name)['uuid'][0] for name in ('kitchen', 'cellar')]
        origin, server = Origin(), on.serve()[0]
        on.hide(uuids[1], Origin())
        hiding = on.hide(uuids[0], origin)
        before, bystander = on.at_rest(server.pid, 8), Bystander(on, uuids[1])
        saw, took = [], []
        for _ in range(runs):
            asking = half_an_answer(on, uuids[0], origin) if mid_pipe else None
            began = time.monotonic()
            hiding.end(signal.SIGKILL)
            origin.pause.set()
            if mid_pipe:
                end: Outcome = asking.get()
                saw.append(f'its download {end.saw} after {end.ended - began:.0f} s; then')
            else:
                outcome = ask(on, uuids[0], seconds=0.2)
                saw.append(outcome.saw)
            began = time.monotonic()
            hiding = on.start('hidden.py', hiding.process.args[2], origin.address)
            seen, seconds = until_good(on, uuids[0])
            saw[-1] += f', {seen}'
            took.append(seconds)
        bystander.stop()
        fault = 'hidden.py killed in a pipe' if mid_pipe else 'hidden.py killed while it waits'
        left = on.until_as_before(server.pid, before)
        print_row(f'{fault} ({bystander})', saw, took, left)


def main() -> None:
    runs = int(sys.argv[1]) if sys.argv[1:] else 5
    print_head()
    server_killed(runs)
    redis_killed(runs)
    outside_redis_killed(runs)
    hidden_killed(runs, mid_pipe=False)
    hidden_killed(runs, mid_pipe=True)


if __name__ == '__main__':
    main()
