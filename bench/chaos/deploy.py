"""New versions under load: bin/run.sh has a new server take over, and no request may fail.

    .venv/bin/python bench/chaos/deploy.py [DEPLOYS]

Every other one by SIGUSR2, the others by another bin/run.sh. 20 of them take about three minutes;
exit status 1 where a request failed or anything is left over.
"""

from gevent import monkey

monkey.patch_all()

import random
import signal
import sys
import time
from collections import Counter

import gevent
from common import Origin, Outcome, Stage, ask, print_row, stage, until, words
from programs import Program

CLIENTS = 6
SMALL, LARGE = (1000, 3000), (2_000_000, 2_000_000)  # octets of a request's body, of its answer's


class Load:
    """Mobile clients, each of which asks on a new connection as soon as it has its answer."""

    def __init__(self, on: Stage, uuids: list[str]):
        self._on, self._uuids, self._over = on, uuids, False
        self._outcomes: list[Outcome] = []
        self._greenlets = [gevent.spawn(self._ask) for _ in range(CLIENTS)]

    def _ask(self) -> None:
        while not self._over:
            octets = random.choice((SMALL, SMALL, SMALL, LARGE))
            self._outcomes.append(ask(self._on, random.choice(self._uuids), *octets))

    def stop(self) -> list[Outcome]:
        self._over = True
        gevent.joinall(self._greenlets, raise_error=True)
        return self._outcomes


def deploy(on: Stage, script: Program, anew: bool) -> tuple[Program, float]:
    """The bin/run.sh that serves then, and the seconds until the old server has ended."""
    began, (old,) = time.monotonic(), on.server_pids()
    with (on.path / 'server.py').open('a') as file:
        file.write('# a new version\n')
    if anew:
        before, script = script, on.run_sh()
        assert before.process.wait(timeout=60) == 0
    else:
        script.process.send_signal(signal.SIGUSR2)
    until(lambda: old not in on.pids(), 'the old one ends', 60)
    return script, time.monotonic() - began


def main() -> int:
    deploys = int(sys.argv[1]) if sys.argv[1:] else 20
    with stage() as on:
        uuids = [on.add(name)['uuid'][0] for name in ('kitchen', 'cellar')]
        script = on.run_sh()
        for uuid in uuids:
            on.hide(uuid, Origin())
        before, load, took = on.at_rest(*on.server_pids(), 8), Load(on, uuids), []
        for number in range(deploys):
            script, seconds = deploy(on, script, anew=bool(number % 2))
            took.append(seconds)
            gevent.sleep(1)
        outcomes = load.stop()
        left = on.left(*on.server_pids(), before)
    waits = [outcome.ended - outcome.began for outcome in outcomes]
    failed = [outcome for outcome in outcomes if outcome.saw != 'good']
    print_row('', 'what mobile clients saw', [], '')
    print_row('new server: the old one has ended', '', took, f'left over: {left}')
    print_row('a request', words(Counter(each.saw for each in outcomes)), waits, '')
    for outcome in failed[:20]:
        print(f'    {outcome}')
    return 1 if failed or left else 0


if __name__ == '__main__':
    sys.exit(main())
