"""New versions under load: new workers take over from the old ones, and no request may fail.

    .venv/bin/python bench/chaos/deploy.py [DEPLOYS]

Every other one by SIGUSR2, the others by another bin/run.sh. 20 of them take about three minutes;
exit status 1 where a request failed or anything is left over.
"""

from gevent import monkey

monkey.patch_all()

import random
import sys
import time
from collections import Counter

import gevent
from common import Origin, Outcome, Stage, ask, print_row, stage, until, words

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


def deploy(on: Stage, again: bool) -> float:
    """The seconds until the old workers have ended."""
    began, old = time.monotonic(), on.workers()
    with (on.path / 'server.py').open('a') as file:
        file.write('# a new version\n')
    if again:
        assert on.start('-c', 'import os; os.execl("bin/run.sh", "sh")').process.wait(60) == 0
    else:
        assert on.renew()
    until(lambda: not {*old} & {*on.workers()}, 'the old ones end', 60)
    return time.monotonic() - began


def main() -> int:
    deploys = int(sys.argv[1]) if sys.argv[1:] else 20
    with stage() as on:
        uuids = [on.add(name)['uuid'][0] for name in ('kitchen', 'cellar')]
        pid = on.run_sh().pid
        for uuid in uuids:
            on.hide(uuid, Origin())
        before, load, took = on.at_rest(8), Load(on, uuids), []
        for number in range(deploys):
            took.append(deploy(on, again=bool(number % 2)))
            gevent.sleep(1)
        outcomes, same = load.stop(), pid == on.parent
        failed = [outcome for outcome in outcomes if outcome.saw != 'good']
        for outcome in failed[:20]:
            on.explain(outcome)
        left = on.left(before)
    waits = [outcome.ended - outcome.began for outcome in outcomes]
    print_row('', 'what mobile clients saw', [], '')
    more = f'the process is the same: {same}; left over: {left}'
    print_row('new version: the old workers have ended', '', took, more)
    print_row('a request', words(Counter(each.saw for each in outcomes)), waits, '')
    return 1 if failed or left or not same else 0


if __name__ == '__main__':
    sys.exit(main())
