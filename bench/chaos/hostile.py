"""How long others wait while somebody attacks, beside HAProxy under the same attack.

    .venv/bin/python bench/chaos/hostile.py [--workers COUNT] [ROW ...]

Prints a Markdown table, a line a row; without names it takes all rows, which is about six minutes.
The server has one worker, as HAProxy has one thread, or COUNT. Needs: apt install haproxy nginx.

Each row has an attacker (attack.py) with an address of its own, and somebody else who asks all the
while through the same hidden server, `hidden.py` before nginx: on a new connection each time, and
on one that is kept. How long the slowest of those requests took is what the table has, and the
median of all of them; HAProxy has one thread, TLS at its front, and the same nginx behind it.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import common  # first: it says where the others are
import gevent
from common import free_port, until
from processes import memory_bytes
from programs import listens

ATTACK = Path(__file__).with_name('attack.py')
DESCRIPTORS = 1024  # of hidden.py at its start, as most systems have it
BYSTANDER, HIDDEN = '127.0.66.1', '127.0.66.2'  # addresses
AFTER_SECONDS = 1.5  # for which others go on asking
SETTLE_SECONDS = 15  # until the connections of a row have gone
LONGEST_SECONDS = 100  # for anything
NGINX = """
daemon off; user root; worker_processes 1; pid nginx.pid; error_log nginx.log;
worker_rlimit_nofile 10000;
events {{ worker_connections 8192; }}
http {{
    access_log off; client_max_body_size 0; keepalive_timeout 600; keepalive_requests 1000000;
    client_body_temp_path body; proxy_temp_path body; fastcgi_temp_path body;
    uwsgi_temp_path body; scgi_temp_path body;
    server {{
        listen 127.0.0.1:{port} backlog=1024; root www;
        location /upload {{ proxy_pass http://127.0.0.1:{port}; }}  # once all of it is here
    }}
}}
"""
HAPROXY = """
global
  nbthread 1
  maxconn 8000
  ssl-default-bind-options ssl-min-ver TLSv1.2 no-tls-tickets
defaults
  mode http
  timeout http-request 15s
  timeout http-keep-alive 60s
  timeout connect 10s
  timeout client 600s
  timeout server 600s
frontend web
  bind 127.0.0.1:{web} ssl crt {pem}
  acl named req.hdr(authorization) -m found
  http-request return status 401 hdr WWW-Authenticate Digest if !named
  default_backend local
backend local
  server local 127.0.0.1:{local}
frontend endless
  bind 127.0.0.1:{endless} ssl crt {pem}
  default_backend pictures
backend pictures
  server pictures 127.0.0.1:{pictures}
frontend pipe
  mode tcp
  bind 127.0.0.1:{pipe} ssl crt {pem}
  default_backend far
backend far
  mode tcp
  server far 127.0.0.1:{far} ssl verify none
"""


class Attack:
    """A process of attack.py: an attacker, or one who stands by."""

    def __init__(self, name: str, **arguments):
        command = [sys.executable, str(ATTACK), name, json.dumps(arguments)]
        pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}
        self._process = subprocess.Popen(command, **pipes)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.communicate()

    def begin(self) -> None:
        self._process.stdin.write(b'\n')
        self._process.stdin.flush()

    def says(self) -> dict:
        with gevent.Timeout(LONGEST_SECONDS, TimeoutError('the attacker says nothing')):
            return json.loads(self._process.stdout.readline())

    def end(self) -> dict:
        self._process.stdin.close()
        return self.says()


class Ground:
    """One of the two that are attacked; `to` says where it is, `pids` which processes it has."""

    def __init__(self, to: dict, pids: dict[str, list[int]]):
        self.to, self.pids = to, pids
        self._numbers = iter(range(1, 250))

    def attacker(self, **more) -> dict:
        """What an attacker gets, at an address that nobody has had."""
        return self.to | {'source': f'127.0.88.{next(self._numbers)}', 'hidden': HIDDEN} | more

    def sockets(self) -> int:
        return sum(len(sockets(pids)) for pids in self.pids.values())

    @contextmanager
    def attacked(self, name: str, ways=('new', 'kept'), others=None, **arguments):
        """What an attacker did, and what others saw meanwhile; the latter is there at the end."""
        to, seen = self.to | {'source': BYSTANDER} | (others or {}), {}
        with Attack(name, **arguments) as attack, Attack('bystander', to=to, ways=ways) as other:
            other.begin()
            gevent.sleep(1)
            attack.begin()
            yield attack.says(), seen
            gevent.sleep(AFTER_SECONDS)
            seen.update(other.end())


class Saw:
    """What a row has to say of one of the two."""

    def __init__(self, seen: dict, *notes: str, cell: str = ''):
        self.cell, self.notes = cell or waited(seen.values()), list(filter(None, notes))
        for way, each in seen.items():
            bad = f', {words(each["bad"])}' if each['bad'] else ''
            self.notes.append(f'{way} {each["worst"]:.2f} ({each["median"]:.3f}){bad}')


def waited(ways) -> str:
    bad = sum(sum(way['bad'].values()) for way in ways)
    share = f', {bad} of {sum(way["count"] for way in ways)} bad' if bad else ''
    return f'{max(way["worst"] for way in ways):.2f} s{share}'


def words(counted: dict) -> str:
    return ', '.join(f'{count} x {saw}' for saw, count in Counter(counted).most_common())


def sockets(pids: list[int]) -> list[str]:
    """The lines of `ss` for the TCP connections of processes."""
    listed = subprocess.run(['ss', '-tnpmHO'], capture_output=True, text=True).stdout
    names = [f'pid={pid},' for pid in pids]
    return [line for line in listed.splitlines() if any(name in line for name in names)]


def kernel_bytes(pids: list[int]) -> int:
    """What their sockets hold (man ss: skmem r, w, f)."""
    found = [re.search(r'skmem:\(r(\d+),.*?,f(\d+),w(\d+),', line) for line in sockets(pids)]
    return sum(int(count) for each in found if each for count in each.groups())


@contextmanager
def process(folder: Path, *command: str):
    with (folder / f'{command[0]}.said').open('wb') as said:
        running = subprocess.Popen(command, cwd=folder, stdout=said, stderr=said)
    try:
        yield running.pid
    finally:
        running.terminate()
        running.wait()


class Bench:
    """The two that are attacked, and what is behind them."""

    def __init__(self, stack: ExitStack, workers: int):
        options = {'max_connections_per_address': 1000, 'workers': workers}
        self.on = stack.enter_context(common.stage(**options))
        self.folder, self.pictures = self.on.path.parent, free_port()
        local = self._nginx(stack)
        self.on.serve()
        entry, other = self.on.add('kitchen'), self.on.add('cellar')
        to = {'port': self.on.port, 'uuid': entry['uuid'][0], 'other': other['uuid'][0]}
        to['base32'] = other['authParams']['base32']
        hidden = self.hide(entry, local)
        pids = {'server.py': self.on.workers(), 'hidden.py': [hidden.pid]}
        self.ours = Ground(to, pids)
        self.haproxy = self._haproxy(stack, local)
        self.sockets = self.ours.sockets()
        for on in (self.ours, self.haproxy):
            with Attack('keep', to=on.attacker(), count=1) as one:
                one.begin()
                assert one.says() == {'saw': {'200': 1}}, self.on.log()

    def _nginx(self, stack: ExitStack) -> int:
        port, www = free_port(), self.folder / 'www'
        www.mkdir()
        (www / 'index.html').write_text('hello')
        with (www / 'large').open('wb') as file:
            file.truncate(1 << 30)
        (self.folder / 'nginx.conf').write_text(NGINX.format(port=port))
        nginx = 'nginx', '-p', str(self.folder), '-c', 'nginx.conf', '-e', 'nginx.log'
        stack.enter_context(process(self.folder, *nginx))
        until(lambda: listens(port), 'nginx listens')
        return port

    def _haproxy(self, stack: ExitStack, local: int) -> Ground:
        pem, names = self.folder / 'both.pem', ('web', 'endless', 'pipe', 'far')
        both = [(self.on.path / f'registrar.{name}').read_text() for name in ('crt', 'key')]
        pem.write_text(''.join(both))
        ports = {name: free_port() for name in names}
        config = HAPROXY.format(local=local, pictures=self.pictures, pem=pem, **ports)
        (self.folder / 'haproxy.conf').write_text(config)
        pid = stack.enter_context(process(self.folder, 'haproxy', '-db', '-f', 'haproxy.conf'))
        until(lambda: listens(ports['web']), 'HAProxy listens')
        to = {'port': ports['web'], 'uuid': 'x', 'other': ports['far'], 'pem': str(pem)}
        return Ground(to | ports, {'haproxy': [pid]})

    def hide(self, entry: dict, port: int):
        """A hidden.py before a local server."""
        file = str(self.on.path / 'entries' / f'{entry["uuid"][0]}.json')
        hidden = self.on.start('hidden.py', file, f'127.0.0.1:{port}')
        hidden.until_it_says('registered')
        return hidden


# The streams: an attacker, and how long others wait for it


def stream(name: str, **arguments):
    def row(bench: Bench, on: Ground) -> Saw:
        to = on.attacker()
        if name in ('pipe_up', 'pipe_down') and on is bench.haproxy:
            to['port'] = to['pipe']
        with on.attacked(name, to=to, **arguments) as (did, seen):
            pass
        return Saw(seen, f'{did["kb"]} kB in {did["seconds"]} s', did['ended'])

    return row


# The crowds


def visits(bench: Bench, on: Ground, count: int = 2000) -> Saw:
    """From one address, which is the hidden server's, too."""
    before, to = on.sockets(), on.attacker(source='127.0.0.1')
    with on.attacked('visits', to=to, count=count, a_second=300) as (did, seen):
        pass
    gevent.sleep(2.5)
    left = f'{max(0, on.sockets() - before)} connections left'
    cell = f'{did["saw"].pop("200", 0)} of {count} good'
    return Saw(seen, f'{did["seconds"]} s', words(did['saw']), left, cell=cell)


def endless(bench: Bench, on: Ground) -> Saw:
    """An endless answer whose viewer leaves."""
    to = on.attacker(port=on.to.get('endless', on.to['port']))
    if on is bench.ours:
        entry = bench.on.add('pictures')
        to['uuid'] = entry['uuid'][0]
        bench.hide(entry, bench.pictures)
    with Attack('endless', to=to, port=bench.pictures) as attack:
        attack.begin()
        return Saw({}, cell=f'{attack.says()["waited"]:.1f} s')


def flood(bench: Bench, on: Ground) -> Saw:
    """Right codes beside CONNECTs for UUIDs that are made up."""
    ways = 'registers', 'new', 'kept'
    with on.attacked('flood', ways, to=on.attacker(), threads=24) as (did, seen):
        pass
    return Saw(seen, f'flood: {words(did["saw"])}')


def pipes(bench: Bench, on: Ground) -> Saw:
    """One address keeps so many pipes: what do others get?"""
    with on.attacked('keep', to=on.attacker(), count=600) as (did, seen):
        gevent.sleep(2)
    return Saw(seen, f'attacker: {words(did["saw"])}')


def hang_up(bench: Bench, on: Ground) -> Saw:
    with Attack('hang_up', to=on.attacker(), count=100) as attack:
        attack.begin()
        did = attack.says()
    return Saw({}, cell=f'{did["status"]} after {did["waited"]:.1f} s')


def readers(bench: Bench, on: Ground, count: int = 40) -> Saw:
    """What each of so many takes who begins a large download and stops reading."""

    def now() -> list[int]:
        return [each(pids) for pids in on.pids.values() for each in (kernel_bytes, memory_bytes)]

    before = now()
    with on.attacked('readers', to=on.attacker(), count=count) as (did, seen):
        gevent.sleep(3)
        each = [f'{(n - b) / count / 1e6:.2f}' for n, b in zip(now(), before, strict=True)]
    names = [f'{name} {of}' for name in on.pids for of in ('kernel', 'own')]
    took = ', '.join(f'{name} {megabytes}' for name, megabytes in zip(names, each, strict=True))
    return Saw(seen, words(did['saw']), took, cell=f'{each[0]} MB each')


def memory(bench: Bench, on: Ground) -> Saw:
    """Before a crowd, at its peak, and five seconds after it has left."""
    pids = next(iter(on.pids.values()))
    with Attack('silent', to=on.attacker(), count=2000) as attack:
        took = [memory_bytes(pids)]
        attack.begin()
        did = attack.says()
        took.append(memory_bytes(pids))
    gevent.sleep(5)
    took.append(memory_bytes(pids))
    cell = ', '.join(f'{each / 1e6:.0f}' for each in took)
    return Saw({}, words(did['saw']), cell=f'{cell} MB')


def page(bench: Bench, on: Ground) -> Saw:
    """The page of users_app.py, and connections that never finish their head."""
    program = bench.on.start('users_app.py', '--port', '0')
    port = int(program.until_it_says(r'http://\S+:(\d+)/login')[1])
    others = {'port': port, 'tls': False, 'path': '/login'}
    to = on.attacker(**others)
    with on.attacked('half_heads', ['new'], others, to=to, count=1100) as (did, seen):
        gevent.sleep(2)
    return Saw(seen, f'attacker: {words(did["saw"])}')


ROWS = {
    'memory': (
        '2,000 connections: before, with them, 5 s after',
        memory,
    ),  # first: while nobody was here
    'requests': ('requests without Authorization, pipelined', stream('requests')),
    'head': ('a head of 15 KB, an octet a record', stream('heads', count=1, size=15_000)),
    'heads': ('... on four connections', stream('heads', count=4, size=15_000)),
    'long-head': ('a head of 64 KB, an octet a record', stream('heads', count=1, size=65_000)),
    'long-heads': ('... on four connections', stream('heads', count=4, size=65_000)),
    'bodies': ('bodies behind 401s, an octet a record', stream('bodies', size=60_000)),
    'pipe-up': ('a pipe to a hidden server, an octet a record', stream('pipe_up')),
    'pipe-down': ('... to a mobile client', stream('pipe_down')),
    'upload': ('... to nginx, by the same `hidden.py`', stream('upload')),
    'key-updates': ('KeyUpdates that ask for none', stream('key_updates', asks=False)),
    'asking-key-updates': ('KeyUpdates that ask for one', stream('key_updates', asks=True)),
    'empty': ('thirty empty records behind each octet', stream('empty_records')),
    'alerts': ('a warning behind each octet', stream('alerts')),
    'visits': ('2,000 visits of one address, 300 a second', visits),
    'endless': ('an endless answer, read after its viewer left', endless),
    'flood': ('CONNECTs for made-up UUIDs', flood),
    'pipes': ('600 pipes kept by one address', pipes),
    'hang-up': ('100 waited and left: the next one', hang_up),
    'readers': ('40 stop reading a download', readers),
    'page': ('1,100 half heads at the page', page),
}
OURS_ALONE = 'flood', 'hang-up', 'page'


def print_row(what: str, ours: Saw, theirs: Saw | None) -> None:
    notes = '; '.join(ours.notes)
    if theirs and theirs.notes:
        notes += f' / {"; ".join(theirs.notes)}'
    print(f'| {what} | {ours.cell} | {theirs.cell if theirs else ""} | {notes} |', flush=True)


def run(name: str, bench: Bench) -> None:
    what, row = ROWS[name]
    sides = [bench.ours] if name in OURS_ALONE else [bench.ours, bench.haproxy]
    saw = [row(bench, side) for side in sides]
    print_row(what, *saw, *[None][: 2 - len(saw)])
    with suppress(AssertionError):  # so that no row has to do with what another one left
        until(lambda: bench.ours.sockets() <= bench.sockets + 2, 'all have gone', SETTLE_SECONDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('rows', nargs='*', metavar='ROW', help=', '.join(ROWS))
    parser.add_argument('--workers', type=int, default=1)
    arguments = parser.parse_args()
    names = arguments.rows or list(ROWS)
    if unknown := set(names) - set(ROWS):
        parser.error(f'there is no row {", ".join(unknown)}')
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, most))
    print('| stream | others waited: ours (worst) | HAProxy (worst) | note |')
    print('| --- | --- | --- | --- |', flush=True)
    began = time.monotonic()
    with ExitStack() as stack:
        bench = Bench(stack, arguments.workers)
        for name in names:
            run(name, bench)
    print(f'took {time.monotonic() - began:.0f} s', file=sys.stderr)


if __name__ == '__main__':
    main()
