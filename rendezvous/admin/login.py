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
from contextlib import suppress
from typing import Any
from urllib.parse import SplitResult, urlsplit

from flask import (
    Flask,
    Response,
    abort,
    current_app,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from flask.sessions import SecureCookieSessionInterface
from flask.typing import ResponseReturnValue
from markupsafe import Markup
from werkzeug.exceptions import BadHost, HTTPException

from rendezvous.admin import actions, wishes
from rendezvous.admin.actions import Who
from rendezvous.admin.page_server import BODY_BYTES, HANDLER
from rendezvous.admin.wishes import Wish
from rendezvous.store.entries import Entries, StoreDown
from rendezvous.store.options import Options
from rendezvous.wire import addresses

SESSION_SECONDS = 12 * 60 * 60  # a working day
LINK_SECONDS = 10 * 60  # that a link of `users_app.py link` works
LINKS = 20  # of those at a time; one more ends the oldest
WRONG_CODES, WRONG_SECONDS = 10, 60  # so many in so long; nobody guesses 256 bits anyway
NONCE_CHARACTERS = 16  # of hexadecimal, in front of each token

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

# Werkzeug's own would be for whoever wrote the address.
SENTENCES = {
    400: 'The browser sent what makes no sense: nothing was done.',
    404: 'There is no page at this address.',
    405: 'There is nothing to be done at this address.',
    413: f'This is too much for one form, which has {BODY_BYTES // 1024} KB at most.',
    500: 'This is a fault of the page. The output of users_app.py says more.',
}


class SessionCookie(SecureCookieSessionInterface):
    """Flask's signed cookie. Its name has our port in it: other ports of this host have theirs."""

    def __init__(self, options: Options):
        self._url = options.page_origin and urlsplit(options.page_origin)

    def get_cookie_name(self, app: Flask) -> str:
        port = (self._url.port or 443) if self._url else (_host().port or 80)
        return f'rendezvous-{port}'


class Login:
    """Checks each request before the application answers it."""

    def __init__(
        self,
        app: Flask,
        options: Options,
        announce: Callable[[str], None] | None,
        entries: Entries,
    ):
        """`announce` is given each new code, the first one now. None: no login is needed.

        `entries` gets a line for each login, in the log of changes.
        """
        self._announce, self._entries, self._origin = announce, entries, options.page_origin
        names = options.page_host, urlsplit(options.page_origin).hostname
        self._names = {name.lower() for name in names if name}
        self._has_metrics = bool(options.metrics_token)
        self._key = app.secret_key = secrets.token_bytes()
        self._sessions: dict[str, str] = {}  # the names by the ids of those that are not over
        self._links: dict[str, float] = {}  # codes, and until when they work, the oldest first
        self._wrong_at: deque[float] = deque(maxlen=WRONG_CODES)
        self._announce_code()
        app.debug = False  # even with FLASK_DEBUG, which shows tracebacks
        app.session_interface = SessionCookie(options)
        app.config |= {'MAX_CONTENT_LENGTH': BODY_BYTES, 'SESSION_COOKIE_SAMESITE': 'Strict'}
        app.config |= {
            'PERMANENT_SESSION_LIFETIME': SESSION_SECONDS,
            'SESSION_COOKIE_SECURE': bool(options.page_url),
            'SESSION_COOKIE_PATH': f'{options.page_prefix}/',
        }
        app.extensions['login'] = self
        app.before_request(self._check)
        app.after_request(_add_headers)
        app.register_error_handler(HTTPException, _error_page)
        if announce:
            app.add_url_rule('/login', view_func=self.login, methods=['GET', 'POST'])
            app.add_url_rule('/logout', view_func=self.logout, methods=['POST'])
        app.jinja_env.globals |= {'token': self._token_field, 'has_session': self._has_session}

    def new_code(self) -> str:
        """One more code that works once, within LINK_SECONDS, beside the one of `announce`."""
        while len(self._links) >= LINKS:
            del self._links[next(iter(self._links))]
        code = secrets.token_urlsafe()
        self._links[code] = time.monotonic() + LINK_SECONDS
        return code

    def who(self) -> Who:
        """Who sends the request that is being answered, for the log of changes."""
        name = self._sessions.get(session.get('id', ''))
        return Who('page', f'session {name}' if name else 'without login')

    def _check(self) -> ResponseReturnValue | None:
        """Answers a request that is not admitted."""
        if isinstance(request.routing_exception, BadHost):  # with it no link can be made
            return Response('This page is not called so.\n', 403, content_type='text/plain')
        if request.endpoint == 'metrics' and self._has_metrics:
            return None  # it has a token of its own, which no other page knows
        name = _host().hostname or ''
        # Flask's TRUSTED_HOSTS could not hold [::1], and no range like 127.0.0.0/8. Below localhost
        # hidden servers may have names, and some browsers ask the DNS for those.
        is_ours = addresses.is_loopback(name) and not addresses.is_below_localhost(name)
        if not (is_ours or name in self._names):
            abort(403, f'This page is not called {name!r}: set page_host in local.py if it is.')
        reads = request.method in ('GET', 'HEAD', 'OPTIONS')
        if not reads and self._is_from_another_page():
            abort(403, 'This came from another web page: nothing was done.')
        if 'Transfer-Encoding' in request.headers:
            abort(411, 'A request needs a Content-Length.')  # as browsers send it
        if request.endpoint in ('login', 'static'):
            return None
        if self._announce and not self._has_session():
            return _login_page(wishes.of_request(), ended=_had_session()), 403
        if not reads and not self._is_token(request.form.get('token', '')):
            return self._out_of_date(wishes.of_request())
        request.environ[HANDLER].admitted = True
        return None

    def login(self) -> ResponseReturnValue:
        """Takes a code by POST. A GET of the link with it only shows it in the form: browsers and
        chat programs fetch links before a user clicks.
        """
        if request.method != 'POST':
            if self._has_session():  # the link was opened again
                return redirect(url_for('index'), 303)
            return _login_page(Wish(), code=request.args.get('code', '')), NO_REFERRER
        wish, now = wishes.of_login_form(), time.monotonic()
        # Somebody may paste the whole link.
        given = request.form.get('code', '').strip().rpartition('code=')[2]
        if self._use(given, now):
            session['id'], name = secrets.token_urlsafe(), secrets.token_hex(2)
            self._sessions[session['id']] = name
            where = f'from {request.remote_addr}'
            actions.noted(self._entries, actions.LOGGED_IN, '', '', self.who(), where)
            return self._after_login(wish)
        if self._has_session():  # a form or link that was used already is shown again
            return self._after_login(wish)
        return self._refuse(wish, now)

    def logout(self) -> ResponseReturnValue:
        actions.noted(self._entries, actions.LOGGED_OUT, '', '', self.who())
        self._sessions.pop(session.pop('id', ''), None)  # a copy of the cookie is worthless, too
        return redirect(url_for('login'), 303)

    def _out_of_date(self, wish: Wish) -> ResponseReturnValue:
        """The form is of a session that is over, while its sender has another one."""
        error = 'This form is out of date: nothing was done.'
        if not wish.posts:
            abort(403, f'{error} Go back, reload the page and send it again.')
        return self._again(wish, error=error), 403

    def _again(self, wish: Wish, error: str = '') -> str:
        entry = None
        with suppress(StoreDown):  # what was typed is kept all the same
            entry = self._entries.shown(wish.uuid) if wish.uuid else None
        return render_template('again.html', wish=wish, entry=entry, error=error)

    def _after_login(self, wish: Wish) -> ResponseReturnValue:
        if wish.posts:
            return self._again(wish)
        return redirect(wish.path or url_for('index'), 303)

    def _refuse(self, wish: Wish, now: float) -> ResponseReturnValue:
        # Only wrong codes are refused: nobody can lock out who has the right one.
        if len(self._wrong_at) == WRONG_CODES and now - self._wrong_at[0] < WRONG_SECONDS:
            wait = math.ceil(self._wrong_at[0] + WRONG_SECONDS - now)
            error = f'Too many wrong codes: try again in {wait} seconds.'
            return _login_page(wish, error=error), 429, NO_REFERRER | {'Retry-After': str(wait)}
        self._wrong_at.append(now)
        error = 'This code is wrong or was used already: the terminal shows the current one.'
        return _login_page(wish, error=error), 403, NO_REFERRER

    def _use(self, code: str, now: float) -> bool:
        """Whether it is right; then it is so no more."""
        if _is_same(code, self._code):
            self._announce_code()
            return True
        found = [each for each in self._links if _is_same(code, each)]
        return bool(found) and self._links.pop(found[0]) > now

    def _announce_code(self) -> None:
        self._code = secrets.token_urlsafe()
        if self._announce:
            self._announce(self._code)

    def _has_session(self) -> bool:
        return session.get('id') in self._sessions

    def _is_from_another_page(self) -> bool:
        """Whether another web page sent it; one at another port of this host is another."""
        site = request.headers.get('Sec-Fetch-Site')  # no script can set it
        if site:
            return site != 'same-origin'
        # None: not sent by a browser
        allowed = [None, f'http://{request.host}', self._origin or None]
        if request.endpoint == 'login':
            allowed.append('null')  # from a page with no-referrer; the code is proof enough
        return request.headers.get('Origin') not in allowed

    def _token(self, nonce: str) -> str:
        """Each form of this session holds it. No other page knows it."""
        told = f'{nonce} {session.get("id", "")}'.encode()
        return nonce + hmac.new(self._key, told, 'sha256').hexdigest()

    def _is_token(self, given: str) -> bool:
        return _is_same(given, self._token(given[:NONCE_CHARACTERS]))

    def _token_field(self) -> Markup:
        # It is another one each time: answers are compressed, and their lengths would tell a token
        # that stays the same to whoever can have texts of theirs put into the page (BREACH).
        token = self._token(secrets.token_hex(NONCE_CHARACTERS // 2))
        return Markup('<input type="hidden" name="token" value="{}">').format(token)


def who() -> Who:
    """Who sends the request that is being answered, for the log of changes."""
    return current_app.extensions['login'].who()


def _login_page(wish: Wish, **values: Any) -> str:
    return render_template('login.html', wish=wish, held=wishes.HELD, **values)


def _had_session() -> bool:
    """Whether the browser has a cookie of ours, whose session is over then."""
    return bool(request.cookies.get(current_app.session_interface.get_cookie_name(current_app)))


def _host() -> SplitResult:
    """Our name and port as the browser knows them; '' and None if they make no sense."""
    return urlsplit(f'//{request.host}')


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
        return redirect(request.script_root + (request.path.rpartition('/')[0] or '/'))
    headers = [*error.get_headers(), ('Connection', 'close')]  # its body may not have been read
    code, sentence = error.code or 500, error.description
    if sentence == type(error).description:
        sentence = SENTENCES.get(code, sentence)
    return render_template('error.html', error=sentence), code, headers
