"""The HTTP server of the page: strangers cannot keep it from answering those who have logged in.

A stranger may open many connections and send nothing, or send very slowly. So each request has a
deadline, and where there are too many connections the oldest one of a stranger is closed.
"""

import errno
import os
import socket
from contextlib import suppress
from http.client import HTTPException, HTTPMessage, LineTooLong
from io import BytesIO
from typing import Any

import click
import gevent
from gevent.pywsgi import Input, WSGIHandler, WSGIServer, headers_factory

from rendezvous.wire import sockets

CONNECTIONS = 200  # a browser has six; where descriptors are few there are 256 (macOS)
SILENT_SECONDS = 60  # without a new request, or without progress in sending an answer
REQUEST_SECONDS = 15  # from the first octet of a request to the last one of its body
HEAD_BYTES = 64 * 1024  # of the header fields; they include cookies of other ports of this host
BODY_BYTES = 64 * 1024  # of a request; our largest form has some hundred

TOO_SLOW = b'HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n'
HANDLER = 'rendezvous.handler'  # the WSGI environment's key for the Handler of the connection


class Server(WSGIServer):
    """Serves at most CONNECTIONS connections at a time."""

    backlog = 1024  # connections that wait to be accepted: a crowd can fill a short queue
    max_accept = 10  # at a time: an accepted connection has a descriptor before `handle` counts it

    def __init__(self, *args: Any, **more: Any):
        super().__init__(*args, **more)
        self._greenlets: dict[Handler, gevent.Greenlet] = {}  # the oldest connection first

    def handle(self, sock: socket.socket, address: tuple) -> None:
        if len(self._greenlets) >= CONNECTIONS and not self._close_one():
            return
        sock.settimeout(SILENT_SECONDS)
        handler = Handler(sock, address, self)
        self._greenlets[handler] = gevent.getcurrent()
        try:
            with suppress(OSError):  # the client has gone
                handler.handle()
        finally:
            self._greenlets.pop(handler, None)

    def _close_one(self) -> bool:
        """Closes the oldest connection of a stranger, or one without a request, if there is one."""
        idle = [handler for handler in self._greenlets if not handler.admitted]
        if idle:
            greenlet = self._greenlets.pop(min(idle, key=lambda each: each.was_admitted))
            greenlet.kill(_silent_end('another connection needs the place'), block=False)
        return bool(idle)


def listen(host: str, port: int) -> Server:
    """A server that listens, and answers once it has an application. Raises ClickException."""
    server = Server((host, port), log=None, error_log=None)  # a log could contain a login code
    try:
        server.init_socket()
    except (OSError, UnicodeError) as error:
        number = getattr(error, 'errno', None) or 0  # of getaddrinfo: negative
        why = os.strerror(number) if number > 0 else 'there is no such host'
        sentence = f'cannot listen on port {port} of {host}: {why}'
        raise click.ClickException(f'{sentence}; choose another --port or --host') from None
    # Accepted sockets inherit it. pywsgi sends head and body apart: 40 ms apart without this.
    server.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return server


def read_header_fields(file: Any, *_: object) -> HTTPMessage:
    """Those of a request, for pywsgi: http.client would read up to 6 MB. Raises LineTooLong."""
    head, line = bytearray(), b'...'
    while line.strip(b'\r\n'):
        line = file.readline(HEAD_BYTES)
        head += line
        if len(head) > HEAD_BYTES:
            raise LineTooLong('head')
    return headers_factory(BytesIO(head))


class Handler(WSGIHandler):
    """One connection. A request is read as a whole before the application is called."""

    MessageClass = staticmethod(read_header_fields)
    wsgi_input: Input
    admitted = False  # the login has admitted the request that is being answered
    was_admitted = False  # it has admitted an earlier one
    _body_was_read = True

    def handle_one_request(self) -> Any:
        """As pywsgi does, with a deadline. Without a request, nothing is answered."""
        sockets.take_turn()  # a client that sends many requests at once delays nobody else
        if not self.rfile.peek(1):
            return None
        self._deadline = gevent.Timeout.start_new(REQUEST_SECONDS)
        try:
            return super().handle_one_request()
        except gevent.Timeout as timeout:
            if timeout is not self._deadline:
                raise
            return '408', TOO_SLOW
        finally:
            self._deadline.close()

    def read_request(self, raw_requestline: str) -> bool:
        """Reads the head. What http.client cannot read is answered with 400."""
        with suppress(HTTPException, OSError, IndexError):  # IndexError: HTTP/1
            return super().read_request(raw_requestline)
        return False

    def get_environ(self) -> dict[str, Any]:
        """Reads the body too, unless it is refused."""
        environ, length = super().get_environ(), self.content_length or 0
        self._body_was_read = length <= BODY_BYTES and 'transfer-encoding' not in self.headers
        body = self.wsgi_input.read() if self._body_was_read else b''
        environ['wsgi.input'] = self.wsgi_input = Input(BytesIO(body), len(body))
        environ[HANDLER] = self
        return environ

    def handle_one_response(self) -> None:
        self._deadline.close()
        try:
            super().handle_one_response()
        finally:
            self.was_admitted, self.admitted = self.was_admitted or self.admitted, False
        if not self._body_was_read:
            self.close_connection = True
            # An unread body would cost the client the answer.
            sockets.close_gracefully(sockets.Socket(self.socket))

    def _sendall(self, data: bytes) -> None:
        try:
            super()._sendall(data)
        except TimeoutError:
            raise _silent_end('the client does not read') from None


def _silent_end(why: str) -> ConnectionResetError:
    """An error on which pywsgi closes the connection and logs nothing."""
    return ConnectionResetError(errno.ECONNRESET, why)
