"""HAProxy in front of three nodes, as deploy/haproxy.cfg has it: one is drained, one is killed."""

import os
import re
import shutil
import signal
import subprocess
import time
from types import SimpleNamespace

import pytest
from checked import Mobile, Origin, Request, numbers
from conftest import ROOT, until
from gevent.greenlet import Greenlet
from programs import listens
from test_three_nodes import Load
from three import Three

BALANCER = '127.0.0.4'


def configuration(three: Three) -> str:
    """Of deploy/haproxy.cfg what is for several nodes, with the addresses of these."""
    text = (ROOT / 'deploy' / 'haproxy.cfg').read_text()
    text, _, web = text.partition('\n    server rendezvous ')
    several = re.findall(r'(?m)^    # ((?:[a-z-]+ )+\S.*[^.:,])$', web.partition('\nbackend')[0])
    lines = [line for line in several if line.split()[0] in DIRECTIVES]
    text = '\n'.join([text, *(f'    {line}' for line in lines), ''])
    text = re.sub('.*www.example.com.*\n', '', text)
    port = three.nodes[0].port
    for example, host in zip(
        EXAMPLES, [BALANCER, *(each.host for each in three.nodes)], strict=True
    ):
        assert text.count(f'{example}:443') == 1
        text = text.replace(f'{example}:443', f'{host}:{port}')
    return text


EXAMPLES = '192.0.2.1', '10.0.0.1', '10.0.0.2', '10.0.0.3'
DIRECTIVES = {
    *('balance', 'timeout', 'retries', 'option', 'http-check', 'default-server', 'server'),
}


@pytest.fixture
def three(tmp_path, redis_options):
    nodes = Three(tmp_path, redis_options, proxy_protocol=True)
    for node in nodes.nodes:
        path = node.path / 'rendezvous' / 'server' / 'listening.py'
        path.write_text(path.read_text().replace('LISTEN_SECONDS = 10', 'LISTEN_SECONDS = 5'))
    with nodes:
        yield nodes


@pytest.fixture
def balancer(three, tmp_path):
    """HAProxy, as mobile clients see it."""
    file = tmp_path / 'haproxy.cfg'
    file.write_text(configuration(three))
    process = subprocess.Popen(['haproxy', '-db', '-q', '-f', file])
    node = three.nodes[0]
    until(lambda: listens(node.port, BALANCER), 'HAProxy listens')
    yield SimpleNamespace(host=BALANCER, port=node.port, name=node.name, context=three.context)
    process.kill()
    process.wait()


@pytest.mark.deadline(120)
@pytest.mark.skipif(not shutil.which('haproxy'), reason='haproxy is missing')
def test_node_that_is_drained_loses_nothing_and_one_that_is_killed_its_own_pipes(three, balancer):
    short, long = three.add('short'), three.add('long')
    origins = Origin(), Origin()
    hiding = [
        three.hide(uuid, origin, BALANCER)
        for uuid, origin in zip((short, long), origins, strict=True)
    ]
    mobile = Mobile(balancer, long)
    assert mobile.ask(Request(f'r{next(numbers)}')).saw == 'good'
    accepted = re.compile(f'rendezvous with {long}(?!, from)')
    (drained,) = until(
        lambda: [node for node in three.nodes if accepted.search(node.log())], 'it is in a log'
    )
    killed, _ = (node for node in three.nodes if node is not drained)
    origins[1].flows.clear()
    download = Greenlet.spawn(mobile.ask, Request(f'r{next(numbers)}', 0, 10_000_000))

    load = Load([balancer], [short])
    load.until_more()
    parent = drained._programs[-1]
    os.kill(parent.pid, signal.SIGUSR1)
    until(lambda: not listens(drained.port, drained.host), 'it listens no more')
    load.until_more()
    assert load.stop() == [], 'no request is lost'
    assert parent.process.poll() is None
    origins[1].flows.set()
    assert download.get(timeout=30).saw == 'good', 'on a connection that was kept'
    mobile.close()
    assert parent.process.wait(timeout=30) == 0
    drained.until_nothing_runs()
    assert not re.search(' (ERROR|CRITICAL) |Traceback', drained.log())

    load = Load([balancer], [short])
    load.until_more()
    killed.kill()
    until(lambda: not listens(killed.port, killed.host), 'the kernel has noticed')
    at = time.monotonic()
    load.until_more()
    assert not [each for _, each in load.stop() if each.since > at], 'no new connection fails'
    for each in hiding:
        assert each.end() == 0
