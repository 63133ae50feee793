"""The page of the entries: what it shows and what its forms do. `guard.py` says who may use it.

Every form works without JavaScript. With it, what changes by itself is fetched again every two
seconds: the same page, of which static/page.js takes the parts that are marked `data-live`.
"""

import gc
import logging
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlencode

import click
import gevent
import segno
from flask import Flask, Response, abort, redirect, render_template, request
from gevent.event import AsyncResult
from gevent.lock import Semaphore
from markupsafe import Markup

from rendezvous.admin import actions, certificate, listing, words
from rendezvous.admin import entry_files as files
from rendezvous.admin.actions import LABEL_CHARACTERS, Unable
from rendezvous.admin.login import NO_REFERRER, Guard, Server
from rendezvous.store import presence as live
from rendezvous.store.entries import DIGITS, Entries, StoreDown, slices
from rendezvous.store.options import Options
from rendezvous.wire import addresses, codes, sockets
from rendezvous.wire.programs import Mistake

log = logging.getLogger('page')

HOST = '127.0.0.1'
QR_CHARACTERS = 36  # of a label: a picture with more is too fine for a screen
ROWS = 50  # of a table; the search box finds the others
DONE = {
    'create': 'It is made. Copy its file to the hidden server, and run the command below there.',
    'rename': 'It has its new label.',
    'disable': 'It is disabled: what waited or was open ends within two seconds.',
    'enable': 'It is enabled: its hidden server registers again by itself, within a minute.',
    'rekey': 'It has a new secret, and the old one is worth nothing: copy its new file to the '
    'hidden server, and start hidden.py again there.',
    'delete': 'It is deleted.',
}


class Page:
    """What is shown and done; each method answers one kind of request."""

    def __init__(self, entries: Entries, options: Options):
        self._entries, self._options = entries, options
        self._one_at_a_time, self._next = Semaphore(), None  # of `_listed`

    def index(self, status: int = 200, error: str = ''):
        """The table, searched and a page at a time."""
        wanted, listed = request.args.get('q', '').strip(), self._listed()
        found = _found(listed, wanted.casefold()) if wanted else listed
        last = max(1, -(-len(found) // ROWS))
        number = min(max(request.args.get('page', 1, int), 1), last)
        shown = found[(number - 1) * ROWS : number * ROWS]
        online = sum(each['state'] == 'online' for each in listed)
        more = {'wanted': wanted, 'number': number, 'last': last, 'online': online}
        more |= {'all': len(listed), 'found': len(found), 'error': error}
        more['refresh'] = '/?' + urlencode({'q': wanted, 'page': number})
        return self._render('index.html', rows=shown, **more), status

    def create(self):
        form = request.form
        named = form.get('uuid', ''), form.get('label', '')
        digits = 6 if form.get('digits') == '6' else DIGITS
        try:
            made = actions.create(self._entries, self._options, *named, digits)
        except Unable as refused:
            return self.index(400, refused.message)
        return redirect(f'/entries/{made.name}?done=create', 303)

    def entry(self, uuid, status: int = 200, error: str = ''):
        """All about one entry, but for its secret."""
        known = self._known(uuid)
        known['history'] = live.history(self._entries, known['uuid'])
        known['used_up'] = self._entries.used_up(known['uuid'])
        known['self_signed'] = self._is_self_signed()
        known['url'] = f'https://{files.authority(self._options)}/'
        known['path'], file = f'/entries/{uuid}', files.FILES / f'{uuid}.json'
        known['file'] = file if file.exists() else ''
        return self._render('entry.html', entry=known, error=error, refresh=known['path']), status

    def change(self, uuid, what: str):
        """Does what one of its forms says."""
        uuid, entries, options = str(uuid), self._entries, self._options
        try:
            if what == 'rename':
                actions.rename(entries, options, uuid, request.form.get('label', ''))
            elif what == 'rekey':
                actions.rekey(entries, options, uuid)
            elif what == 'delete':
                actions.remove(entries, uuid)
            else:
                (actions.disable if what == 'disable' else actions.enable)(entries, uuid)
        except Unable as refused:
            return self.entry(uuid, 400, refused.message)
        return redirect(f'{"/" if what == "delete" else "/entries/" + uuid}?done={what}', 303)

    def secret(self, uuid):
        """The secret, as text and as a QR code: asked for by POST, so no URL shows it again."""
        known, parameters = self._known(uuid), self._document(uuid)['authParams']
        totp = codes.totp(parameters)
        totp.issuer = self._options.rendezvous_host
        totp.name = ', '.join(known['labels'])[:QR_CHARACTERS] or known['uuid']
        code = segno.make(totp.provisioning_uri(), micro=False)
        svg = Markup(code.svg_inline(omitsize=True, light='#fff'))
        page = self._render('secret.html', entry=known, parameters=parameters, code=svg)
        return page, NO_REFERRER

    def download(self, uuid, suffix: str):
        """One of the two files for the hidden server, of the entry as it is now."""
        return _attachment(files.text(self._document(uuid), suffix), f'{uuid}.{suffix}')

    def certificate(self):
        """What clients have to trust; it is no secret."""
        pem = files.how_to_reach(self._options).get('ca')
        return _attachment(pem, 'registrar.crt') if pem else abort(404)

    def _listed(self) -> list[dict]:
        """All entries, with what is known of now: as it was after we asked, or later.

        With 10,000 entries that is half a second of work, and each open tab asks every two seconds:
        who asks while one reading goes on shares the next one with all others that do.
        """
        self._next = reading = self._next or AsyncResult()
        with self._one_at_a_time:
            if not reading.ready():
                self._next = None
                try:
                    reading.set(self._read())
                except StoreDown as error:
                    reading.set_exception(error)
            sockets.take_turn()  # each of those who share it makes its page in a turn of its own
            return reading.get()

    def _read(self) -> list[dict]:
        listed, now = self._entries.all(), live.now(self._entries)
        for some in slices(listed):
            for each in some:
                _add_now(each, now.get(each['uuid'], live.Now()))
        return listed

    def _known(self, uuid) -> dict:
        """What can be shown of an entry, even of one that makes no sense."""
        known = self._entries.shown(str(uuid)) or abort(404, f'There is no entry {uuid}.')
        _add_now(known, live.now_of(self._entries, known['uuid']))
        return known

    def _document(self, uuid) -> dict:
        """What its files hold: its secret, too."""
        entry = self._entries.get(str(uuid)) or abort(404, f'There is no entry {uuid}.')
        return files.document(entry, self._options)

    def _is_self_signed(self) -> bool:
        try:
            return 'ca' in files.how_to_reach(self._options)
        except Mistake:
            return True  # the notice says what is wrong

    def _render(self, template: str, **more) -> str:
        done = DONE.get(request.args.get('done', ''), '')
        notice = certificate.notice(self._options)
        return render_template(template, done=done, notice=notice, **more)


def _add_now(entry: dict, now: live.Now) -> None:
    entry |= {'now': now, 'state': listing.state(entry, now)}


def _found(listed: list[dict], wanted: str) -> list[dict]:
    return [each for some in slices(listed) for each in some if _matches(each, wanted)]


def _matches(entry: dict, wanted: str) -> bool:
    texts = entry['uuid'], *entry['labels'], entry['now'].address, entry['state']
    return any(wanted in text.casefold() for text in texts)


def _attachment(text: str, name: str) -> Response:
    response = Response(text, mimetype='application/octet-stream', headers=NO_REFERRER)
    response.headers.set('Content-Disposition', 'attachment', filename=name)
    return response


def _mistaken(mistake: Mistake):
    status = 503 if isinstance(mistake, StoreDown) else 500
    return render_template('error.html', error=str(mistake)), status


def app(entries: Entries, options: Options, announce: Callable[[str], None] | None = None) -> Flask:
    """The WSGI application; `announce` gets the codes that open it, None: it is open."""
    app, page = Flask(__name__), Page(entries, options)
    Guard(app, options.page_host, announce)
    app.jinja_env.globals |= {'server': files.authority(options), 'digits': DIGITS}
    app.jinja_env.globals['label_characters'] = LABEL_CHARACTERS
    app.jinja_env.filters |= {'ago': words.ago, 'utc': words.utc, 'lasting': words.lasting}
    one, changes = '/entries/<uuid:uuid>', 'any(rename, disable, enable, rekey, delete)'
    app.add_url_rule('/', view_func=page.index)
    app.add_url_rule('/entries', view_func=page.create, methods=['POST'])
    app.add_url_rule(one, view_func=page.entry)
    app.add_url_rule(f'{one}/<{changes}:what>', view_func=page.change, methods=['POST'])
    app.add_url_rule(f'{one}/secret', view_func=page.secret, methods=['POST'])
    app.add_url_rule(f'{one}.<any(json, js):suffix>', view_func=page.download)
    app.add_url_rule('/registrar.crt', view_func=page.certificate)
    app.register_error_handler(Mistake, _mistaken)
    for name in app.jinja_env.list_templates():
        app.jinja_env.get_template(name)  # they are compiled now, and hold up no request
    return app


def serve(options: Options, host: str, port: int, login: bool) -> None:
    """Shows the page until a signal ends it. Raises Unable or Mistake."""
    entries, loopback = Entries(options), addresses.is_loopback(host)
    server = Server((host, port), log=None, error_log=None)  # they might quote a login code
    try:
        server.init_socket()
    except (OSError, UnicodeError) as error:
        known = isinstance(error, OSError) and error.errno > 0
        why = os.strerror(error.errno) if known else 'there is no such host'
        where = f'port {port} of {host}'
        raise Unable(f'cannot listen on {where}: {why}; --port N takes another') from None
    # Inherited by what it accepts: pywsgi sends head and body apart, 40 ms apart without this.
    server.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    entries.open()
    if not loopback:
        log.warning('the page listens on %s, beyond this machine, and nothing is encrypted', host)
    name = host if loopback else options.page_host or HOST
    url = f'http://{addresses.authority(name, server.server_port)}'

    def announce(code: str) -> None:
        with suppress(OSError):  # nobody reads it any more
            click.echo(f'To log in, open this link, which works once: {url}/login?code={code}')

    server.start()
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, server.stop)
    server.application = app(entries, options, announce if login else None)  # nobody is in yet
    gc.freeze()  # looking for garbage in all that is loaded would hold up a request
    if not login:
        click.echo(f'The page is at {url}')
    try:
        server.serve_forever()
    finally:
        entries.close()
