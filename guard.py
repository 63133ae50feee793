"""Who may use the page: it makes credentials, and others can reach it besides who is meant to.

Every web page open in the same browser can send requests here: the Host must be a name of ours (or
DNS rebinding would make the answers theirs to read), a change must come from our own pages, as the
browser says and as the token in each form proves, and no other page may frame or load ours.

Every user of this machine can connect here: a code, which is printed on the terminal, opens a
session. A cookie is all that a browser offers to tell one from another, and browsers send it to
other ports of the same host, too: don't visit other users' servers by the name of this page.
"""

import hmac
import math
import secrets
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException as HTTPClientError
from urllib.parse import SplitResult, urlsplit

from flask import Flask, Response, abort, redirect, render_template, request
from gevent.pywsgi import WSGIHandler
from markupsafe import Markup
from werkzeug.exceptions import HTTPException, NotFound, RequestEntityTooLarge

import options as local

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
NO_REFERRER = {'Referrer-Policy': 'no-referrer'}


class Handler(WSGIHandler):
    """Answers a head that http.client gives up on as any other bad one: with a 400, and no more."""

    def read_request(self, raw_requestline: str) -> bool:
        with suppress(HTTPClientError):
            return super().read_request(raw_requestline)
        return False


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
        if not (local.is_loopback(name) or (also and name == also)):
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
