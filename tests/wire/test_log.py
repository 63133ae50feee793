"""What the log says of connections that went wrong, and that a fault of ours is seen there at all.

Many tests look for a traceback in the log and expect none.
"""

import re
import socket
import uuid as uuids

import pytest
from conftest import Peer, connect_request, until
from programs import Folder

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
        fault = (
            'from gevent import monkey; monkey.patch_all(); from rendezvous.wire import programs; '
            'from rendezvous.server import credentials, worker as server; '
            'credentials.wanted = None; programs.main(server.main)'
        )
        program = folder.start('-c', fault)
        found = until(lambda: re.search(r'listening on port (\d+)', folder.log()), 'it serves')
        for _ in range(2):
            peer = Peer(socket.create_connection(('127.0.0.1', int(found[1]))))
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
    until(lambda: not server._connections, 'its handler ends')
    assert [re.sub(r'^\S+ ', '', each)[:12] for each in caplog.messages] == ['refused: 400']
    assert 'Traceback' not in caplog.text + capfd.readouterr().err
