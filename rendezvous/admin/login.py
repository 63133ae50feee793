"""Who may use the page: it makes credentials, and others can reach it besides who is meant to.

Every web page open in the same browser can send requests here: the Host must be a name of ours (or
DNS rebinding would make the answers theirs to read), a change must come from our own pages, as the
browser says and as the token in each form proves, and no other page may frame or load ours.

Every user of this machine can connect here: a code, which is printed on the terminal, opens a
session. A cookie is all that a browser offers to tell one from another, and browsers send it to
other ports of the same host, too: don't visit other users' servers by the name of this page.

Whoever can connect may also open connections and say nothing, or speak very slowly: each request
has a deadline, and where there are too many connections the oldest stranger's is ended.
"""

import errno
import hmac
import math
import secrets
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException as HTTPClientError
from http.client import LineTooLong
from io import BytesIO
from urllib.parse import SplitResult, urlsplit

import gevent
from flask import Flask, Response, abort, redirect, render_template, request
from gevent.pywsgi import Input, WSGIHandler, WSGIServer, headers_factory
from markupsafe import Markup
from werkzeug.exceptions import HTTPException, NotFound, RequestEntityTooLarge

from rendezvous.wire import addresses, sockets

CONNECTIONS = 200  # a browser has six; where descriptors are few there are 256 (macOS)
SILENT_SECONDS = 60  # in which no request begins, or an answer is not taken whole
REQUEST_SECONDS = 15  # from its first octet to the last of its body, however slowly they drip
HEAD_BYTES = 64 * 1024  # of the fields; cookies of other ports of this host are among them
BODY_BYTES = 64 * 1024  # of a request; the largest form of ours has some hundred
SESSION_SECONDS = 12 * 60 * 60  # a working day
WRONG_CODES, WRONG_SECONDS = 10, 60  # so many in so long; nobody guesses 256 bits anyway

_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
_POLICY += "img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
HEADERS = {
    'Cache-Control': 'no-store',
    'Content-Security-Policy': _POLICY,
    'Cross-Origin-Opener-Policy': 'same-origin',
    'Cross-Origin-Resource-Policy': 'same-origin',
    # With no-referrer, browsers hide the Origin of forms, too: only what shows a secret has that.
    'Referrer-Policy': 'same-origin',
    'X-Content-Type-Options': 'nosniff',
    'X-Frame-Options': 'DENY',
}
SENTENCES = {  # instead of Werkzeug's
    NotFound.description: 'There is no such page.',
    RequestEntityTooLarge.description: 'That is more than any form here holds.',
}
TOO_SLOW = b'HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n'
HANDLER = 'rendezvous.handler'  # of the connection, in what Flask calls the environment
NO_REFERRER = {'Referrer-Policy': 'no-referrer'}


class Server(WSGIServer):
    """Accepts as many connections as there are places."""

    backlog = 1024  # of those to be accepted; a crowd takes no one's place there
    max_accept = 10  # at a time: an accepted one has a descriptor before it has a place

    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self._greenlets: dict[Handler, gevent.Greenlet] = {}  # the oldest first

    def handle(self, sock, address) -> None:
        if len(self._greenlets) >= CONNECTIONS and not self._evict():
            return
        sock.settimeout(SILENT_SECONDS)
        handler = Handler(sock, address, self)
        self._greenlets[handler] = gevent.getcurrent()
        try:
            handler.handle()
        finally:
            self._greenlets.pop(handler, None)

    def _evict(self) -> bool:
        """Ends the oldest connection of a stranger, or one without a request; False: none is."""
        idle = [each for each in self._greenlets if not each.let_in]
        if idle:
            greenlet = self._greenlets.pop(min(idle, key=lambda each: each.known))
            greenlet.kill(_gone('another one needs the place'), block=False)
        return bool(idle)


def fields(file, *_):
    """Those of a head, for pywsgi. Raises LineTooLong: http.client alone would read 6 MB."""
    head, line = bytearray(), b'...'
    while line.strip(b'\r\n'):
        line = file.readline(HEAD_BYTES)
        head += line
        if len(head) > HEAD_BYTES:
            raise LineTooLong('head')
    return headers_factory(BytesIO(head))


class Handler(WSGIHandler):
    """One connection: each of its requests is here as a whole before it is looked at."""

    MessageClass = staticmethod(fields)
    let_in = False  # the guard has let in the request that is being answered
    known = False  # it has let in one before
    _is_whole = True  # the body has been read

    def handle(self) -> None:
        with suppress(OSError):  # its client has gone
            super().handle()

    def handle_one_request(self):
        """What pywsgi's handler answers; nothing to one that says nothing, 408 to a slow one."""
        sockets.take_turn()  # requests that come one behind the other stop nobody
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
        """Reads the head; one that http.client gives up on gets a 400 as any other bad one."""
        with suppress(HTTPClientError, OSError, IndexError):  # the last is for HTTP/1
            return super().read_request(raw_requestline)
        return False

    def get_environ(self) -> dict:
        """With the body, where it is one that is taken."""
        environ, length = super().get_environ(), self.content_length or 0
        self._is_whole = length <= BODY_BYTES and 'transfer-encoding' not in self.headers
        body = self.wsgi_input.read() if self._is_whole else b''
        environ['wsgi.input'] = self.wsgi_input = Input(BytesIO(body), len(body))
        environ[HANDLER] = self
        return environ

    def handle_one_response(self) -> None:
        self._deadline.close()
        try:
            super().handle_one_response()
        finally:
            self.known, self.let_in = self.known or self.let_in, False
        if not self._is_whole:
            self.close_connection = True
            sockets.close_gracefully(self.socket)  # reads the rest off, or the answer might be lost

    def _sendall(self, data) -> None:
        try:
            super()._sendall(data)
        except TimeoutError:
            raise _gone('it does not read') from None


def _gone(why: str) -> ConnectionResetError:
    """What pywsgi takes for a client that has gone: it ends the connection and says nothing."""
    return ConnectionResetError(errno.ECONNRESET, why)


class Guard:
    """Stands before all that the application answers."""

    def __init__(self, app: Flask, page_host: str | None, announce: Callable[[str], None] | None):
        """`announce` gets each code, the first one now; None: whoever comes may use the page."""
        self._page_host, self._announce = page_host, announce
        self._key = secrets.token_bytes()
        self._ends: dict[str, float] = {}  # by session
        self._wrong: deque[float] = deque(maxlen=WRONG_CODES)
        self._new_code()
        app.debug = False  # whatever FLASK_DEBUG says: it would show tracebacks
        app.config['MAX_CONTENT_LENGTH'] = BODY_BYTES
        app.before_request(self._let_in)
        app.after_request(_fence)
        app.register_error_handler(HTTPException, _refused)
        if announce:
            app.add_url_rule('/login', view_func=self.login_page)
            app.add_url_rule('/login', view_func=self.login, methods=['POST'])
            app.add_url_rule('/logout', view_func=self.logout, methods=['POST'])
        app.jinja_env.globals |= {'token': self._token_field, 'has_session': self._has_session}

    def _let_in(self):
        """Aborts, or answers, what may not pass."""
        name, also = _host().hostname or '', (self._page_host or '').lower()
        if not (addresses.is_loopback(name) or (also and name == also)):
            abort(403, f'This page is not called {name!r}: set page_host in local.py if it is.')
        reads = request.method in ('GET', 'HEAD', 'OPTIONS')
        if not reads and _is_foreign():
            abort(403, 'This came from another web page: nothing was done.')
        if 'Transfer-Encoding' in request.headers:
            abort(411, 'Say how long it is.')  # as browsers do: BODY_BYTES is compared with that
        if request.endpoint in ('login', 'login_page', 'static'):
            return None
        if self._announce and not self._has_session():
            return render_template('login.html', code=''), 403
        if not reads and not _same(request.form.get('token', ''), self._token()):
            abort(403, 'This form is out of date: go back, reload the page and send it again.')
        request.environ[HANDLER].let_in = True
        return None

    def login_page(self):
        """Shows the form, with the code of the link in it.

        The link uses up nothing: browsers and chat programs fetch links before anybody clicks.
        """
        return render_template('login.html', code=request.args.get('code', '')), NO_REFERRER

    def login(self):
        now = time.monotonic()
        # A whole link that was pasted in holds the code, too.
        given = request.form.get('code', '').strip().rpartition('code=')[2]
        if not _same(given, self._code):
            # The right one passes all the same: nobody shall lock its owner out.
            if len(self._wrong) == WRONG_CODES and now - self._wrong[0] < WRONG_SECONDS:
                wait = math.ceil(self._wrong[0] + WRONG_SECONDS - now)
                abort(429, f'Too many wrong codes: try again in {wait} seconds.', retry_after=wait)
            self._wrong.append(now)
            error = 'This code is wrong, or was used: the terminal shows the one that is good now.'
            return render_template('login.html', code='', error=error), 403, NO_REFERRER
        self._new_code()
        session = secrets.token_urlsafe()
        self._ends = {each: end for each, end in self._ends.items() if end > now}
        self._ends[session] = now + SESSION_SECONDS
        response = redirect('/', 303)
        response.set_cookie(_cookie(), session, httponly=True, samesite='Strict')
        return response

    def logout(self):
        self._ends.pop(_session(), None)
        response = redirect('/login', 303)
        response.delete_cookie(_cookie(), httponly=True, samesite='Strict')
        return response

    def _new_code(self) -> None:
        self._code = secrets.token_urlsafe()
        if self._announce:
            self._announce(self._code)

    def _has_session(self) -> bool:
        return self._ends.get(_session(), 0) > time.monotonic()

    def _token(self) -> str:
        """What each form of this session holds, and no other page knows."""
        return hmac.new(self._key, _session().encode(), 'sha256').hexdigest()

    def _token_field(self) -> Markup:
        return Markup('<input type="hidden" name="token" value="{}">').format(self._token())


def _host() -> SplitResult:
    """The name and the port by which the browser calls us; '' where they make no sense."""
    return urlsplit(f'//{request.host}')


def _is_foreign() -> bool:
    """Whether another web page sends this, one at another port of this host included."""
    site = request.headers.get('Sec-Fetch-Site')  # no script can set it
    if site:
        return site != 'same-origin'
    allowed = [None, f'http://{request.host}']  # None: no browser
    if request.endpoint == 'login':
        allowed.append('null')  # of a page with no-referrer; and who knows the code may come
    return request.headers.get('Origin') not in allowed


def _cookie() -> str:
    """The name of the cookie: servers on other ports of this host have theirs."""
    return f'rendezvous-{_host().port or 80}'


def _session() -> str:
    return request.cookies.get(_cookie(), '')


def _same(given: str, right: str) -> bool:
    """Takes as long whatever is wrong with it."""
    return hmac.compare_digest(given.encode(), right.encode())


def _fence(response: Response) -> Response:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def _refused(error: HTTPException):
    """A sentence, and no traceback."""
    if error.code == 405 and request.method == 'GET':  # the address of a form, loaded again
        return redirect(request.path.rpartition('/')[0] or '/')
    headers = [*error.get_headers(), ('Connection', 'close')]  # of its body nothing is read
    sentence = SENTENCES.get(error.description, error.description)
    return render_template('error.html', error=sentence), error.code, headers
