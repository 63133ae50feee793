"""hidden.py as a program: signals, what it needs, what it says of mistakes."""

import json
import os
import re
import shutil
import signal
import ssl
from contextlib import suppress

import gevent
import pytest
from conftest import OK, ROOT, until
from gevent.event import Event
from hiding import HEAD_ENDS, MEGABYTE, asked, deaf, hello, said, until_waiting

import hidden
from rendezvous.wire import programs


def test_four_registrations_wait_unless_told_otherwise(server, uuid, run_hidden):
    program = run_hidden(server)
    until_waiting(server, uuid, 4)
    program.until_it_says(rf'INFO registered at 127\.0\.0\.1:{server.port} as {uuid}\n')
    assert program.end() == 0
    program = run_hidden(server, None, '--registrations', '7')
    until_waiting(server, uuid, 7)
    assert program.end() == 0
    assert program.said().count('\n') == 2  # all of them are one change of state


@pytest.mark.parametrize('url', ['https://kitchen.example.com/', None])
def test_url_for_mobile_clients_is_said_once(
    registrar, uuid, entry, hide, caplog, monkeypatch, url
):
    monkeypatch.setattr('rendezvous.hidden.hidden_server.LIFETIME_SECONDS', 0.1)
    caplog.set_level('INFO', 'hidden')
    if url:
        entry['server']['url'] = url
    hide(registrar)
    registrar.until_made(6)
    without = f'https://127.0.0.1:{registrar.port}/ and the user name {uuid}'
    assert said(caplog)[1:] == [f'mobile clients use {url or without}']


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_what_waits_and_lets_a_pipe_finish(stranger, listen, run_hidden, number):
    """Two that wait, and one in a pipe."""
    registered, goodbyes, passed = [], [], Event()

    def register(peer):
        peer.until(HEAD_ENDS)
        peer.send(OK)
        registered.append(peer)
        if peer is registered[0]:
            peer.send(b'ping')
            until(lambda: len(registered) == 3, 'two wait')
            peer.send(b'ping')  # what went to the others before has been read when it is back
            assert peer.receive(8) == b'pingping'
            passed.set()
            until(lambda: len(goodbyes) == 2, 'those that wait are ended')
            peer.send(b'last')
            assert peer.receive(4) == b'last'
        goodbyes.append(peer.rest())  # which raises where there is no close_notify

    def echo(peer):
        for _ in range(3):
            peer.send(peer.receive(4))

    program = run_hidden(stranger(register), listen(echo), '--registrations', '2')
    assert passed.wait(10)
    assert program.end(number) == 0
    until(lambda: goodbyes == [b''] * 3, 'each says goodbye')
    assert len(registered) == 3
    assert program.said().count('\n') == 3
    assert 'stopping: pipes may take 30 seconds to finish\n' in program.said()


def full_pipe(server, uuid: str, run_hidden, listen, connect, **how):
    """A hidden.py whose mobile client does not read, and that client."""
    full = Event()

    def answer(peer):
        peer.sock.settimeout(0.2)
        with suppress(TimeoutError):
            peer.send(MEGABYTE * 32)
        full.set()
        deaf(peer)

    program = run_hidden(server, listen(answer), **how)
    until_waiting(server, uuid, 4)
    mobile = asked(connect, server, uuid)
    full.wait()
    return program, mobile


def test_second_ctrl_c_ends_it_at_once(server, uuid, run_hidden, listen, connect):
    program, mobile = full_pipe(server, uuid, run_hidden, listen, connect)
    os.killpg(program.pid, signal.SIGINT)
    program.until_it_says('stopping')
    assert program.end(signal.SIGINT) == 1
    mobile.close()


IN_A_HURRY = (
    'import hidden; hidden.command.FINISH_SECONDS = 0.5; hidden.programs.main(hidden.command.main)'
)


def test_pipe_that_does_not_finish_is_ended(server, uuid, run_hidden, listen, connect):
    """... though its mobile client does not read; and what it got does not look whole."""
    how = {'program': ('-c', IN_A_HURRY)}
    program, mobile = full_pipe(server, uuid, run_hidden, listen, connect, **how)
    mobile.sock.suppress_ragged_eofs = False  # an end without a close_notify is an error
    assert program.end() == 0
    with pytest.raises(ssl.SSLError):
        mobile.rest()


def test_server_forgets_it_as_soon_as_it_ends(server, uuid, run_hidden):
    program = run_hidden(server)
    until_waiting(server, uuid, 4)
    assert program.end() == 0
    until_waiting(server, uuid, 0, seconds=1)


def test_log_holds_neither_code_nor_secret(
    server, uuid, entry, entries, run_hidden, listen, connect, shown
):
    program = run_hidden(server)
    until_waiting(server, uuid, 4)
    assert asked(connect, server, uuid).answer().status == 502
    until_waiting(server, uuid, 4)
    entries.delete(uuid)  # ends the four, and they try again
    log = program.until_it_says(r'registered(?s:.*)local server(?s:.*)not registered.*\n').string
    assert len(shown) > 5
    for secret in {*shown, entry['authParams']['base32']}:
        assert secret not in log


ONLY_GEVENT_AND_PYOTP = """
import runpy, sys
from importlib.machinery import PathFinder

NEEDED = 'gevent', 'greenlet', 'zope', 'pyotp'  # the second and the third are gevent's

class Only:
    @staticmethod
    def find_spec(name, path=None, target=None):
        spec = PathFinder.find_spec(name, path, target)
        installed = spec and 'site-packages' in str(spec.origin)
        if installed and name.partition('.')[0] not in NEEDED:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Only)
try:
    import flask
except ModuleNotFoundError:
    runpy.run_path('hidden.py', run_name='__main__')
"""


def test_needs_two_folders_gevent_and_pyotp(server, uuid, folder, run_hidden, listen, connect):
    """What the README has one copy to the hidden machine."""
    for file in folder.path.glob('*.py'):
        if file.name != 'hidden.py':
            file.unlink()
    for room in folder.path.glob('rendezvous/*'):
        if room.name not in ('wire', 'hidden'):
            shutil.rmtree(room) if room.is_dir() else room.unlink()
    program = run_hidden(server, listen(hello), program=('-c', ONLY_GEVENT_AND_PYOTP))
    until_waiting(server, uuid, 4)
    assert asked(connect, server, uuid).answer().body == b'hello'
    assert program.end() == 0


WITHOUT_LINUX = """
import os, runpy, select, signal, socket, sys, time, _socket, _signal

TCP = 'INFO', 'USER_TIMEOUT', 'KEEPIDLE', 'KEEPINTVL', 'KEEPCNT', 'QUICKACK', 'NOTSENT_LOWAT'
POLL = 'poll', 'epoll', *(name for name in dir(select) if name.startswith(('POLL', 'EPOLL')))
MISSING = {
    **dict.fromkeys((socket, _socket), ['AF_UNIX', *(f'TCP_{name}' for name in TCP)]),
    **dict.fromkeys((signal, _signal), ['SIGHUP']),
    select: POLL,
    os: [name for name in dir(os) if name.startswith('EX_')],
    time: ['CLOCK_BOOTTIME'],
}
for module, names in MISSING.items():
    for name in names:
        vars(module).pop(name, None)
socket.__all__ = [name for name in socket.__all__ if hasattr(socket, name)]
sys.modules['resource'] = None  # an import of it fails
os.environ['PATH'] = ''
sys.argv[0] = 'hidden.py'
runpy.run_path('hidden.py', run_name='__main__')
"""


def test_runs_where_the_system_is_not_linux(server, uuid, run_hidden, listen, connect):
    program = run_hidden(server, listen(hello), program=('-c', WITHOUT_LINUX))
    until_waiting(server, uuid, 4)
    assert asked(connect, server, uuid).answer().body == b'hello'
    assert program.end() == 0
    assert not re.search('WARNING|ERROR|Traceback', program.said())
    program = run_hidden(server, None, '--registrations', '0', program=('-c', WITHOUT_LINUX))
    assert program.process.wait(timeout=10) == 78
    assert program.said() == 'hidden.py: --registrations must be 1 or more\n'


# Mistakes


def ran(monkeypatch, capsys, *arguments) -> tuple[int, str]:
    """hidden.py's exit status and its last words."""
    monkeypatch.setattr('sys.argv', ['hidden.py', *map(str, arguments)])
    with gevent.Timeout(5, AssertionError('it runs')), pytest.raises(SystemExit) as ended:
        programs.main(hidden.command.main)
    stdout, stderr = capsys.readouterr()
    assert stdout == ''
    assert 'Traceback' not in stderr
    return ended.value.code, stderr


def sentence(monkeypatch, capsys, *arguments) -> str:
    status, stderr = ran(monkeypatch, capsys, *arguments)
    assert (status, stderr.count('\n')) == (os.EX_CONFIG, 1), stderr
    assert stderr.startswith('hidden.py: ')
    return stderr


@pytest.mark.parametrize(
    'octets',
    [b'', b'null', b'[]', b'"x"', b'{}', b'exports.params = {};', b'\xff', b'[' * 100_000],
    ids=lambda octets: repr(octets[:20]),
)
def test_file_that_is_no_entry_is_a_mistake(monkeypatch, capsys, tmp_path, octets):
    file = tmp_path / 'ID.json'
    file.write_bytes(octets)
    said = sentence(monkeypatch, capsys, file, '127.0.0.1:8000')
    assert f'{file} is no ID.json of users_app.py: ' in said


@pytest.mark.parametrize(
    ('name', 'why'), [('missing.json', 'No such file or directory'), ('.', 'Is a directory')]
)
def test_file_that_can_not_be_read_is_a_mistake(monkeypatch, capsys, tmp_path, name, why):
    said = sentence(monkeypatch, capsys, tmp_path / name, '127.0.0.1:8000')
    assert said == f'hidden.py: cannot read {tmp_path / name}: {why}; give the path of ID.json\n'


GONE = object()
WRONG = {
    ('uuid',): [GONE, None, [], [5], ['kitchen'], '7d4e1a52-3c0b-4f6e-9a81-52c60b8f1d27'],
    ('server',): [GONE, None, [], 'x'],
    ('server', 'hostname'): [GONE, None, 5, '', 'a..b', 'a b', '.x', 'http://x'],
    ('server', 'port'): [GONE, None, 0, 65536, -1, 88.5, True, 'https', [8899]],
    ('server', 'ca'): [5, 'no PEM', '-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----'],
    ('authParams',): [GONE, None, [], 'x'],
    ('authParams', 'base32'): [GONE, None, 5, '', 'A1', 'not base32', 'AAAAAAAA='],
    ('authParams', 'algorithm'): [None, 5, 'md5', ''],
    ('authParams', 'step'): [None, 0, '30', []],
    ('authParams', 'digits'): [None, 5, 9, '6'],
}


@pytest.mark.parametrize(
    ('path', 'value'), [(path, value) for path, values in WRONG.items() for value in values]
)
def test_entry_with_a_wrong_field_is_a_mistake(monkeypatch, capsys, tmp_path, entry, path, value):
    *parents, name = path
    holder = entry[parents[0]] if parents else entry
    holder[name] = value
    if value is GONE:
        del holder[name]
    file = tmp_path / 'ID.json'
    file.write_text(json.dumps(entry))
    said = sentence(monkeypatch, capsys, file, '127.0.0.1:8000')
    assert f'{file} is no ID.json of users_app.py: ' in said


def test_local_server_that_is_none_is_a_mistake(monkeypatch, capsys):
    said = sentence(monkeypatch, capsys, 'ID.json', 'localhost')
    assert said.startswith("hidden.py: 'localhost' is no local server: write it as 127.0.0.1:8000")


def test_insecure_is_for_a_local_server_behind_tls_alone(monkeypatch, capsys):
    said = sentence(monkeypatch, capsys, 'ID.json', 'x:1', '--insecure')
    assert said == 'hidden.py: --insecure is for a local server with https://\n'


def test_password_of_a_proxy_gets_into_no_unit(monkeypatch, capsys):
    proxy = '--proxy', 'http://u:secret@x:1'
    said = sentence(monkeypatch, capsys, 'ID.json', 'x:1', '--service', *proxy)
    assert said.startswith('hidden.py: --service with a password in --proxy: use https_proxy')
    assert 'secret' not in said


@pytest.mark.parametrize('count', ['0', '-1'])
def test_too_few_registrations_are_a_mistake(monkeypatch, capsys, count):
    said = sentence(monkeypatch, capsys, 'ID.json', 'x:1', '--registrations', count)
    assert said == 'hidden.py: --registrations must be 1 or more\n'


@pytest.mark.parametrize(
    'arguments', [(), ('x',), ('x', 'y:1', 'z'), ('x', 'y:1', '--registrations', 'x'), ('--no',)]
)
def test_usage_error_is_argparse_s(monkeypatch, capsys, arguments):
    status, stderr = ran(monkeypatch, capsys, *arguments)
    assert status == 2
    assert stderr.startswith('usage: hidden.py')


def test_page_about_it_has_each_option(monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['hidden.py', '--help'])
    with pytest.raises(SystemExit):
        hidden.command.main()
    options = re.findall(r'^  (?:-h, )?(--[a-z-]+)', capsys.readouterr().out, re.M)
    table = re.findall(r'^\| `(--[a-z-]+)', (ROOT / 'docs' / 'hidden.md').read_text(), re.M)
    assert {*options} - {'--help'} == {*table}


def test_process_ends_with_the_sentence_and_status_78(folder):
    said = folder.run('hidden.py', 'missing.json', '127.0.0.1:8000').sentence()
    assert 'missing.json' in said
