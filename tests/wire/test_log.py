"""What the log says of connections that went wrong, and that a fault of ours is seen there at all.

Many tests look for a traceback in the log and expect none.
"""

import logging
import re
import socket
import subprocess
import sys
import uuid as uuids

import pytest
from conftest import ROOT, Peer, connect_request, until
from programs import ENDS_SECONDS, Folder

from rendezvous.wire import logs

QUESTION = b'GET / HTTP/1.1\r\nHost: x\r\n\r\n'


def broken(*_):
    raise ZeroDivisionError('a fault of ours')


def test_fault_of_ours_ends_its_connection_alone_and_is_logged_with_its_traceback(
    server, connect, monkeypatch, caplog
):
    monkeypatch.setattr(server.rendezvous.entries, 'get', broken)
    peer = connect(server)
    host, port = peer.sock.getsockname()
    peer.send(connect_request(str(uuids.uuid4()), '123456'))
    assert peer.rest() == b''
    until(lambda: caplog.records, 'it is logged')
    (record,) = caplog.records
    assert record.levelname == 'ERROR'
    assert record.getMessage() == f'{host}:{port} failed'
    assert 'Traceback' in caplog.text
    assert 'in broken' in caplog.text
    other = connect(server)
    other.send(QUESTION)
    assert other.answer().status == 401


def test_server_log_holds_the_traceback_of_a_fault_of_ours(tmp_path):
    with Folder(tmp_path) as folder:
        folder.set(key_file=None)
        with (folder.path / 'rendezvous/server/credentials.py').open('a') as file:
            file.write('wanted = None\n')
        program, port = folder.serve()
        for _ in range(2):
            peer = Peer(socket.create_connection(('127.0.0.1', port)))
            peer.send(QUESTION)
            assert peer.rest() == b''
            peer.close()
        until(lambda: folder.log().count('TypeError: ') == 2, 'it is logged')
        assert len(re.findall(r'ERROR 127\.0\.0\.1:\d+ failed\nTraceback ', folder.log())) == 2
        assert program.end() == 0


@pytest.mark.parametrize(
    ('end', 'why'),
    [('reset', r'\[Errno 104\] Connection reset by peer'), ('close', 'hung up within a request')],
)
def test_connection_that_is_lost_without_tls_says_why(start, connect, caplog, end, why):
    caplog.set_level('INFO')
    peer = connect(start(key_file=None))
    caplog.clear()
    host, port = peer.sock.getsockname()
    peer.send(QUESTION[:20])
    getattr(peer, end)()
    until(lambda: caplog.messages, 'it is logged')
    assert re.fullmatch(f'{host}:{port} lost: {why}', caplog.messages[0])
    assert len(caplog.messages) == 1


@pytest.mark.parametrize('options', [{}, {'key_file': None}], ids=['TLS', 'plain'])
def test_refusal_to_a_client_that_has_reset_is_one_line(start, connect, caplog, capfd, options):
    caplog.set_level('INFO')
    server = start(**options)
    caplog.clear()
    peer = connect(server)
    peer.send(b'no request\r\n\r\n')
    peer.reset()  # no yield since then: the server reads what was sent, and can answer no more
    until(lambda: caplog.messages, 'it is logged')
    until(lambda: not server.connections, 'its handler ends')
    assert [re.sub(r'^\S+ ', '', each)[:12] for each in caplog.messages] == ['refused: 400']
    assert 'Traceback' not in caplog.text + capfd.readouterr().err


def write(handler: logging.Handler, text: str) -> None:
    handler.handle(logging.makeLogRecord({'msg': text}))


def test_no_line_is_lost_while_several_processes_write_and_one_rotates(tmp_path):
    folder, enough = tmp_path / 'logs', tmp_path / 'enough'
    folder.mkdir()
    file, rotations = folder / 'server.log', 0
    script = (
        'import logging; from itertools import count; from pathlib import Path\n'
        'from rendezvous.wire import logs\n'
        f'logs.to(logs.file(Path({str(file)!r})))\n'
        'for number in count():\n'
        '    logging.info("line %d", number)\n'
        f'    if Path({str(enough)!r}).exists(): break\n'
        'print(number)\n'
    )
    command = [sys.executable, '-c', script]
    running = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(3)]

    def all_have_ended() -> bool:
        nonlocal rotations
        logs.rotate(file, 10_000, 1000)
        rotations = len([*folder.iterdir()]) - 1
        if rotations > 5:
            enough.touch()
        return all(each.poll() == 0 for each in running)

    try:
        until(all_have_ended, 'all lines are written')
    finally:
        enough.touch()  # or the writers would never end
    last = [int(each.communicate()[0]) for each in running]
    written = ''.join(each.read_text() for each in folder.iterdir())
    for number in range(max(last) + 1):
        assert written.count(f' INFO line {number}\n') == sum(each >= number for each in last)


def test_newest_line_of_a_quiet_process_is_in_the_newest_file(tmp_path):
    """Its file has been renamed and deleted since its last line."""
    file = tmp_path / 'server.log'
    quiet, busy = logs.file(file), logs.file(file)
    write(quiet, 'first')
    for number in range(100):
        write(busy, f'{number:100}')
        logs.rotate(file, 1000)
    assert len([*tmp_path.iterdir()]) == 5 + file.exists()
    assert sum(each.stat().st_size for each in tmp_path.iterdir()) <= 6 * 1110
    write(quiet, 'last')
    assert file.read_text().endswith('last\n')
    for handler in (quiet, busy):
        handler.close()


def test_folder_that_is_gone_ends_nothing_and_the_log_goes_on_when_it_is_back(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(logging, 'raiseExceptions', False)
    folder = tmp_path / 'logs'
    folder.mkdir()
    handler = logs.file(folder / 'server.log')
    folder.rename(tmp_path / 'moved')
    write(handler, 'lost')
    logs.rotate(folder / 'server.log')
    folder.mkdir()
    write(handler, 'found')
    assert (folder / 'server.log').read_text() == 'found\n'
    handler.close()


def test_log_that_nobody_can_write_stops_nobody():
    """A disk that hangs, a terminal after Ctrl-S: what could not be written is counted."""
    script = (
        'from gevent import monkey; monkey.patch_all(); import gevent, logging\n'
        'from rendezvous.wire import background_log, logs\n'
        'background_log.BACKLOG_LINES = 5000\n'
        'logs.to(background_log.Background(logging.StreamHandler()))\n'
        'for number in range(10_000):\n'
        '    logging.info("line %d", number)\n'
        '    gevent.sleep(0)\n'
        'print("it goes on", flush=True)\n'
    )
    command = [sys.executable, '-c', script]
    ran = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert ran.stdout.readline() == b'it goes on\n'
    _, said = ran.communicate(timeout=ENDS_SECONDS)
    lost = int(re.search(rb'(\d+) more lines could not be written in time', said)[1])
    assert said.count(b' INFO line ') + lost == 10_000


WITHOUT_DESCRIPTORS = """
from gevent import monkey

monkey.patch_all()

import logging, os, resource, signal
from contextlib import suppress
from pathlib import Path
import gevent
from rendezvous.wire import logs
from rendezvous.wire.background_log import Background

logs.to(Background(logs.file(Path('some.log'))))
gevent.signal_handler(signal.SIGTERM, exit)
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
taken = []
with suppress(OSError):
    while True:
        taken.append(os.open('.', os.O_RDONLY))
for line in 'without', 'with':
    logging.info(line)
    gevent.sleep(0.5)
    for descriptor in taken:
        os.close(descriptor)
    taken.clear()
"""


def test_lines_are_written_where_no_descriptor_is_left_for_a_thread(folder):
    """... and later ones, too."""
    ran = folder.run('-c', WITHOUT_DESCRIPTORS)
    assert (ran.status, ran.stderr) == (0, '')
    lines = (folder.path / 'some.log').read_text().splitlines()
    assert [line.split()[-1] for line in lines] == ['without', 'with']
