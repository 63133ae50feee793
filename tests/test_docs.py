"""What the pages and the files to copy say is true: links, names, options, units, commands."""

import ast
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from conftest import OK, ROOT, Peer, code, connect_request, free_port, get, until
from gevent.server import StreamServer
from programs import listens

from rendezvous.store import options

PAGES = sorted([*ROOT.glob('*.md'), *ROOT.glob('docs/*.md')])
DEPLOY = ROOT / 'deploy'
OPTION_ROW = re.compile(r'^\| `(\w+)` \| `([^`]*)` \|', re.M)

every_page = pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)


def needs(program: str):
    """Skips a test where a program is missing."""
    missing = not shutil.which(program)
    return pytest.mark.skipif(missing, reason=f'{program} is missing')


run = partial(subprocess.run, capture_output=True, text=True, timeout=50)


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r'^( *)```.*?^\1```$', '', page.read_text(), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """What GitHub makes of its headings."""
    headings = re.findall(r'^#+ (.+)$', prose(page), re.M)
    return {re.sub(r'[^\w -]', '', heading).lower().replace(' ', '-') for heading in headings}


@every_page
def test_links_lead_somewhere(page):
    for link in re.findall(r'\]\(([^)\s]+)\)', prose(page)):
        if '://' in link:
            continue
        name, _, anchor = link.partition('#')
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@every_page
def test_files_that_it_names_exist(page):
    if page.name == 'CHANGELOG.md':
        return  # it may name what is no more
    tops = 'rendezvous|tests|bench|bin|deploy|docs'
    names = re.findall(rf'(?<![\w/.:-])(?:{tops})/[\w./-]*\w/?', page.read_text())
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_tests_that_it_names_are_there():
    text = (ROOT / 'docs' / 'promises.md').read_text()
    named = re.findall(r'`(tests/[\w/]+\.py)::(\w+)`', text)
    assert named
    for file, name in named:
        assert re.search(rf'^def {name}\(', (ROOT / file).read_text(), re.M), name


def test_every_page_is_found_from_the_readme():
    linked = re.findall(r'\]\(([^)#\s]+)', (ROOT / 'README.md').read_text())
    assert {f'docs/{page.name}' for page in ROOT.glob('docs/*.md')} <= set(linked)


def test_table_of_options_has_each_option_with_its_default():
    rows = dict(OPTION_ROW.findall((ROOT / 'docs' / 'operations.md').read_text()))
    assert rows == {name: repr(getattr(options.DEFAULTS, name)) for name in options.NAMES}


def test_programs_that_it_names_are_programs():
    """`.venv/bin/python NAME.py` in any page."""
    text = ''.join(page.read_text() for page in PAGES)
    names = re.findall(r'python3? (\w+\.py)\b', text)
    assert names
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_table_of_commands_has_each_command():
    ran = run([sys.executable, ROOT / 'users_app.py', '--help'])
    commands = re.findall(r'^  (\w+)  ', ran.stdout.partition('Commands:')[2], re.M)
    table = (ROOT / 'docs' / 'administration.md').read_text()
    assert commands
    assert sorted(commands) == sorted(re.findall(r'^\| `(\w+)[` ]', table, re.M))


@pytest.fixture
def units(tmp_path):
    """The units, with programs that are there in place of those in /srv."""
    for file in DEPLOY.glob('*.service'):
        text = re.sub(r'^ExecStart=\S+', 'ExecStart=/bin/true', file.read_text(), flags=re.M)
        (tmp_path / file.name).write_text(text)
    (tmp_path / 'rendezvous.service.d').mkdir()
    shutil.copy(DEPLOY / 'low-port.conf', tmp_path / 'rendezvous.service.d')
    return sorted(tmp_path.glob('*.service'))


@needs('systemd-analyze')
def test_units_are_what_systemd_understands(units):
    assert len(units) == 2
    ran = run(['systemd-analyze', 'verify', '--man=no', *units])
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, '', '')


@needs('systemd-analyze')
def test_units_let_the_programs_do_little(units):
    """10 is a unit without any of it, and 2 is what systemd calls OK."""
    for unit in units:
        ran = run(['systemd-analyze', 'security', '--offline=yes', '--threshold=20', unit])
        assert ran.returncode == 0, ran.stdout


def test_units_start_what_is_there_and_do_not_repeat_a_mistake():
    for unit in DEPLOY.glob('*.service'):
        text = unit.read_text()
        program = re.search(r'^ExecStart=(.*)$', text, re.M)[1].split()
        in_project = [part.removeprefix('/srv/rendezvous/') for part in program]
        assert any((ROOT / name).is_file() for name in in_project if '.venv' not in name)
        assert 'RestartPreventExitStatus=78' in text
    assert 'KillMode=mixed' in (DEPLOY / 'rendezvous.service').read_text()


@pytest.fixture
def hook(tmp_path):
    """Runs certbot-hook.sh on folders of the test's own; gives what it did with systemctl."""
    group = str(os.getgid())
    text = (DEPLOY / 'certbot-hook.sh').read_text()
    for old, new in (('group=rendezvous ', f'group={group} '), ('/etc/rendezvous', 'etc')):
        assert old in text
        text = text.replace(old, new)
    (tmp_path / 'hook').write_text(text)
    (tmp_path / 'lineage').mkdir()
    (tmp_path / 'systemctl').write_text(
        '#!/bin/sh\necho "$*" >>"$TOLD"\n[ "$1" != is-active ] || exit "$IS_ACTIVE"\n'
    )
    (tmp_path / 'systemctl').chmod(0o755)

    def hook(serves: bool) -> str:
        told = tmp_path / 'told'
        told.write_text('')
        environment = {
            'PATH': f'{tmp_path}:{os.environ["PATH"]}',
            'RENEWED_LINEAGE': str(tmp_path / 'lineage'),
            'TOLD': str(told),
            'IS_ACTIVE': '0' if serves else '3',
        }
        ran = run(['sh', 'hook'], cwd=tmp_path, env=environment)
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, '', '')
        return told.read_text()

    return hook


def test_certbot_hook_copies_each_renewal_and_has_it_read(hook, tmp_path):
    for serves in (False, True):
        for name in ('privkey.pem', 'fullchain.pem'):
            (tmp_path / 'lineage' / name).write_text(f'{name} {serves}')
        told = hook(serves)
        assert ('reload rendezvous' in told) == serves
        key, chain = tmp_path / 'etc' / 'privkey.pem', tmp_path / 'etc' / 'fullchain.pem'
        assert key.read_text() == f'privkey.pem {serves}'
        assert chain.read_text() == f'fullchain.pem {serves}'
        assert key.stat().st_mode & 0o777 == 0o440, 'nobody else may read it'


def test_certbot_hook_is_for_certbot_alone():
    assert os.access(DEPLOY / 'certbot-hook.sh', os.X_OK)
    ran = run([DEPLOY / 'certbot-hook.sh'], env={'PATH': os.environ['PATH']})
    assert ran.returncode != 0
    assert 'RENEWED_LINEAGE' in ran.stderr


@pytest.fixture
def haproxy(tmp_path):
    """Runs haproxy.cfg in front of a server and of a web server; gives the port."""
    processes = []

    def haproxy(server_port: int, web_port: int) -> int:
        port = free_port()
        ports = {'192.0.2.1:443': port, '127.0.0.1:443': server_port, '127.0.0.1:8443': web_port}
        text = re.sub(r'(?m)^ *#.*\n', '', (DEPLOY / 'haproxy.cfg').read_text())
        assert sorted(re.findall(r'[\d.]+:\d+', text)) == sorted(ports)
        text = re.sub(r'[\d.]+:\d+', lambda match: f'127.0.0.1:{ports[match[0]]}', text)
        (tmp_path / 'haproxy.cfg').write_text(text)
        processes.append(subprocess.Popen(['haproxy', '-db', '-q', '-f', tmp_path / 'haproxy.cfg']))
        until(lambda: listens(port), 'HAProxy listens')
        return port

    yield haproxy
    for process in processes:
        process.kill()
        process.wait()


def options_in_haproxy_cfg() -> dict:
    """What its first lines say of local.py."""
    lines = re.findall(r"^#     ('.*),$", (DEPLOY / 'haproxy.cfg').read_text(), re.M)
    return ast.literal_eval('{' + ', '.join(lines) + '}')


@needs('haproxy')
def test_haproxy_passes_on_to_the_server_and_to_the_web_server(
    haproxy, start, pair, entries, uuid, echo
):
    given = options_in_haproxy_cfg()
    assert given['listen_host'] == '127.0.0.1'
    given |= {'rendezvous_host': '127.0.0.1', 'rendezvous_port': 0}
    server = start(**given)
    port = haproxy(server.port, echo)
    context = ssl.create_default_context(cafile=pair['crt_file'])

    def client() -> Peer:
        sock = socket.create_connection(('127.0.0.1', port))
        return Peer(context.wrap_socket(sock, server_hostname='127.0.0.1'))

    with closing(client()) as hidden, closing(client()) as mobile:
        hidden.send(connect_request(uuid, code(entries, uuid)))
        assert hidden.receive(len(OK)) == OK
        mobile.send(get(uuid))
        assert hidden.until(b'\r\n\r\n').startswith(b'GET / HTTP/1.1')
        hidden.send(b'HTTP/1.1 204 No Content\r\n\r\n')
        assert mobile.answer().status == 204
    with socket.create_connection(('127.0.0.1', port)) as sock:
        ours = ssl.MemoryBIO()
        tls = context.wrap_bio(ssl.MemoryBIO(), ours, server_hostname='www.example.com')
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        sock.sendall(hello := ours.read())
        assert Peer(sock).receive(len(hello)) == hello, 'the web server has it'


@pytest.fixture
def echo():
    """The port of a server that sends back what comes."""

    def send_back(sock, _) -> None:
        while octets := sock.recv(65536):
            sock.sendall(octets)

    server = StreamServer(('127.0.0.1', 0), send_back)
    server.start()
    yield server.server_port
    server.stop()
