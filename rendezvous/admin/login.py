"""Who may use the page: it makes credentials, and many can reach it who must not use it.

Each web page that is open in the same browser can send requests to ours. So the Host must be one of
our names (or DNS rebinding would let the other page read the answers), a change must come from a
page of ours, as the browser says and as the token in each form proves, and no other page may frame
or load ours.

Each user of this machine can connect to the page. So a code, which is printed on the terminal,
opens a session. Browsers send its cookie to the other ports of the same host, too: do not visit
servers of other users under the host name of this page.
"""

import hmac
import math
import secrets
import time
from collections import deque
from collections.abc import Callable
from urllib.parse import SplitResult, urlsplit

from flask import Flask, Response, abort, redirect, render_template, request, session
from flask.sessions import SecureCookieSessionInterface
from flask.typing import ResponseReturnValue
from markupsafe import Markup
from werkzeug.exceptions import HTTPException

from rendezvous.admin.page_server import BODY_BYTES, HANDLER
from rendezvous.wire import addresses

SESSION_SECONDS = 12 * 60 * 60  # a working day
WRONG_CODES, WRONG_SECONDS = 10, 60  # so many in so long; nobody guesses 256 bits anyway

_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
_POLICY += "img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
HEADERS = {
    'Cache-Control': 'no-store',
    'Content-Security-Policy': _POLICY,
    'Cross-Origin-Opener-Policy': 'same-origin',
    'Cross-Origin-Resource-Policy': 'same-origin',
    # no-referrer would hide the Origin of our forms, too: only answers with a secret have that.
    'Referrer-Policy': 'same-origin',
    'X-Content-Type-Options': 'nosniff',
    'X-Frame-Options': 'DENY',
}
NO_REFERRER = {'Referrer-Policy': 'no-referrer'}


class SessionCookie(SecureCookieSessionInterface):
    """Flask's signed cookie. Its name has our port in it: other ports of this host have theirs."""

    def get_cookie_name(self, app: Flask) -> str:
        return f'rendezvous-{_host().port or 80}'


class Login:
    """Checks each request before the application answers it."""

    def __init__(self, app: Flask, page_host: str | None, announce: Callable[[str], None] | None):
        """`announce` is given each new code, the first one now. None: no login is needed."""
        self._page_host, self._announce = (page_host or '').lower(), announce
        self._key = app.secret_key = secrets.token_bytes()
        self._sessions: set[str] = set()  # the ids of those that have not logged out
        self._wrong_at: deque[float] = deque(maxlen=WRONG_CODES)
        self._new_code()
        app.debug = False  # even with FLASK_DEBUG, which shows tracebacks
        app.session_interface = SessionCookie()
        app.config |= {'MAX_CONTENT_LENGTH': BODY_BYTES, 'SESSION_COOKIE_SAMESITE': 'Strict'}
        app.config['PERMANENT_SESSION_LIFETIME'] = SESSION_SECONDS
        app.before_request(self._check)
        app.after_request(_add_headers)
        app.register_error_handler(HTTPException, _error_page)
        if announce:
            app.add_url_rule('/login', view_func=self.login, methods=['GET', 'POST'])
            app.add_url_rule('/logout', view_func=self.logout, methods=['POST'])
        app.jinja_env.globals |= {'token': self._token_field, 'has_session': self._has_session}

    def _check(self) -> ResponseReturnValue | None:
        """Answers a request that is not admitted."""
        name = _host().hostname or ''
        # Flask's TRUSTED_HOSTS could not hold [::1], and no range like 127.0.0.0/8.
        if not (addresses.is_loopback(name) or (name and name == self._page_host)):
            abort(403, f'This page is not called {name!r}: set page_host in local.py if it is.')
        reads = request.method in ('GET', 'HEAD', 'OPTIONS')
        if not reads and _is_from_another_page():
            abort(403, 'This came from another web page: nothing was done.')
        if 'Transfer-Encoding' in request.headers:
            abort(411, 'A request needs a Content-Length.')  # as browsers send it
        if request.endpoint in ('login', 'static'):
            return None
        if self._announce and not self._has_session():
            return render_template('login.html', code=''), 403
        if not reads and not _is_same(request.form.get('token', ''), self._token()):
            abort(403, 'This form is out of date: go back, reload the page and send it again.')
        request.environ[HANDLER].admitted = True
        return None

    def login(self) -> ResponseReturnValue:
        """Takes a code by POST. A GET of the link with it only shows it in the form: browsers and
        chat programs fetch links before a user clicks.
        """
        if request.method != 'POST':
            return render_template('login.html', code=request.args.get('code', '')), NO_REFERRER
        now = time.monotonic()
        # Somebody may paste the whole link.
        given = request.form.get('code', '').strip().rpartition('code=')[2]
        if not _is_same(given, self._code):
            # Only wrong codes are refused: nobody can lock out who has the right one.
            if len(self._wrong_at) == WRONG_CODES and now - self._wrong_at[0] < WRONG_SECONDS:
                wait = math.ceil(self._wrong_at[0] + WRONG_SECONDS - now)
                abort(429, f'Too many wrong codes: try again in {wait} seconds.', retry_after=wait)
            self._wrong_at.append(now)
            error = 'This code is wrong or was used already: the terminal shows the current one.'
            return render_template('login.html', code='', error=error), 403, NO_REFERRER
        self._new_code()
        session['id'] = secrets.token_urlsafe()
        self._sessions.add(session['id'])
        return redirect('/', 303)

    def logout(self) -> ResponseReturnValue:
        self._sessions.discard(session.pop('id', ''))  # a copy of the cookie is worthless, too
        return redirect('/login', 303)

    def _new_code(self) -> None:
        self._code = secrets.token_urlsafe()
        if self._announce:
            self._announce(self._code)

    def _has_session(self) -> bool:
        return session.get('id') in self._sessions

    def _token(self) -> str:
        """Each form of this session holds it. No other page knows it."""
        return hmac.new(self._key, session.get('id', '').encode(), 'sha256').hexdigest()

    def _token_field(self) -> Markup:
        return Markup('<input type="hidden" name="token" value="{}">').format(self._token())


def _host() -> SplitResult:
    """Our name and port as the browser knows them; '' and None if they make no sense."""
    return urlsplit(f'//{request.host}')


def _is_from_another_page() -> bool:
    """Whether another web page sent the request. One at another port of this host is another."""
    site = request.headers.get('Sec-Fetch-Site')  # no script can set it
    if site:
        return site != 'same-origin'
    allowed = [None, f'http://{request.host}']  # None: not sent by a browser
    if request.endpoint == 'login':
        allowed.append('null')  # from a page with no-referrer; the code is proof enough
    return request.headers.get('Origin') not in allowed


def _is_same(given: str, right: str) -> bool:
    """Takes as long, wherever they differ."""
    return hmac.compare_digest(given.encode(), right.encode())


def _add_headers(response: Response) -> Response:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def _error_page(error: HTTPException) -> ResponseReturnValue:
    """A sentence, and no traceback."""
    if error.code == 405 and request.method == 'GET':  # the address of a form was reloaded
        return redirect(request.path.rpartition('/')[0] or '/')
    headers = [*error.get_headers(), ('Connection', 'close')]  # its body may not have been read
    return render_template('error.html', error=error.description), error.code or 500, headers
