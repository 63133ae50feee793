"""The page of the entries: what it shows and what its forms do. `login.py` says who may use it.

Every form works without JavaScript. With it, the page fetches itself every two seconds, and
static/page.js updates the parts that are marked `data-live`.
"""

import gc
import logging
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any
from uuid import UUID

import click
import gevent
import segno
from flask import Flask, Response, abort, redirect, render_template, request
from flask.typing import ResponseReturnValue
from gevent.event import AsyncResult
from gevent.lock import Semaphore
from markupsafe import Markup

from rendezvous.admin import actions, certificate, listing, pack, page_server, words
from rendezvous.admin import entry_files as files
from rendezvous.admin.actions import LABEL_CHARACTERS, Unable
from rendezvous.admin.login import NO_REFERRER, Login
from rendezvous.store import presence
from rendezvous.store.entries import DIGITS, Entries, StoreDown, slices
from rendezvous.store.options import Options
from rendezvous.wire import addresses, codes, sockets
from rendezvous.wire.programs import Mistake

log = logging.getLogger('page')

QR_CHARACTERS = 36  # of a label: with more, the QR code is too fine for a screen
ROWS = 50  # of a table; the search box finds the others
CHANGES = {
    'disable': actions.disable,
    'enable': actions.enable,
    'delete': actions.remove,
    'unname': actions.name_off,
}


class Page:
    """Each public method answers one kind of request."""

    def __init__(self, entries: Entries, options: Options):
        self._entries, self._options = entries, options
        self._read_lock = Semaphore()
        self._next_reading: AsyncResult | None = None

    def index(self, status: int = 200, error: str = '') -> ResponseReturnValue:
        """One page of the table, of all entries or of those that were searched for."""
        wanted, listed = request.args.get('q', '').strip(), self._listed()
        found = _search(listed, wanted.casefold()) if wanted else listed
        last = max(1, -(-len(found) // ROWS))
        number = min(max(request.args.get('page', 1, int), 1), last)
        page = self._render(
            'index.html',
            rows=found[(number - 1) * ROWS : number * ROWS],
            all=len(listed),
            online=sum(each['state'] == 'online' for each in listed),
            found=len(found),
            wanted=wanted,
            number=number,
            last=last,
            error=error,
        )
        return page, status

    def create(self) -> ResponseReturnValue:
        uuid, label = request.form.get('uuid', ''), request.form.get('label', '')
        digits = 6 if request.form.get('digits') == '6' else DIGITS
        try:
            made = actions.create(self._entries, self._options, uuid, label, digits)
        except Unable as error:
            return self.index(400, error.message)
        return redirect(f'/entries/{made.name}?done=create', 303)

    def entry(self, uuid: UUID, status: int = 200, error: str = '') -> ResponseReturnValue:
        """Everything about one entry, except its secret."""
        shown, file = self._shown(uuid), files.FILES / f'{uuid}.json'
        shown['history'] = presence.history(self._entries, shown['uuid'])
        shown['used_up'] = self._entries.used_up(shown['uuid'])
        shown['self_signed'], shown['authority'] = self._what_to_trust()
        shown['name'] = name = actions.name_of(self._entries, self._options, shown['uuid'])
        shown['url'] = url = files.url(self._options, shown['uuid'], name)
        shown['uuid_url'] = files.url(self._options, shown['uuid'])
        shown['code'] = _qr_code_of_url(url)
        shown['path'] = path = f'/entries/{uuid}'
        shown['pack'] = pack.file_name(shown | {'uuid': [shown['uuid']]})
        shown['file'] = file if file.exists() else ''
        return self._render('entry.html', entry=shown, error=error, refresh=path), status

    def change(self, uuid: UUID, what: str) -> ResponseReturnValue:
        """Does what one of the forms of an entry says."""
        entry, entries, options = str(uuid), self._entries, self._options
        try:
            if what == 'rename':
                actions.rename(entries, options, entry, request.form.get('label', ''))
            elif what == 'name':
                actions.name_on(entries, options, entry)
            elif what == 'rekey':
                actions.rekey(entries, options, entry)
            else:
                CHANGES[what](entries, entry)
        except Unable as error:
            return self.entry(uuid, 400, error.message)
        return redirect(f'{"/" if what == "delete" else f"/entries/{uuid}"}?done={what}', 303)

    def secret(self, uuid: UUID) -> ResponseReturnValue:
        """The secret as text and as a QR code. It needs a POST: no URL shows it a second time."""
        shown, parameters = self._shown(uuid), self._document(uuid)['authParams']
        totp = codes.totp(parameters)
        totp.issuer = self._options.rendezvous_host
        totp.name = ', '.join(shown['labels'])[:QR_CHARACTERS] or shown['uuid']
        code = _qr_code(totp.provisioning_uri())
        page = self._render('secret.html', entry=shown, parameters=parameters, code=code)
        return page, NO_REFERRER

    def download(self, uuid: UUID, suffix: str) -> ResponseReturnValue:
        """One of the two files for the hidden server, with the entry as it is now."""
        return _attachment(files.text(self._document(uuid), suffix), f'{uuid}.{suffix}')

    def download_pack(self, uuid: UUID) -> ResponseReturnValue:
        """The hidden server's end in one file."""
        document = self._document(uuid)
        return _attachment(pack.build(document), pack.file_name(document))

    def download_certificate(self) -> ResponseReturnValue:
        """The certificate that clients have to trust. It is not secret."""
        pem = files.how_to_reach(self._options).get('ca') or abort(404)
        return _attachment(pem, 'registrar.crt')

    def download_authority(self) -> ResponseReturnValue:
        """The authority alone: phones and browsers import the first certificate of a file.

        By its type a browser knows that it may offer to import it.
        """
        found = certificate.read(self._options) if self._options.key_file else None
        pem = certificate.pem_of((found and found.authority) or abort(404))
        return Response(pem, mimetype='application/x-x509-ca-cert', headers=NO_REFERRER)

    def _listed(self) -> list[dict[str, Any]]:
        """All entries, with what is known of now: as they are now, or later.

        Reading 10,000 entries takes half a second, and each open tab asks every two seconds. So
        those who ask while one reading is under way share the next one.
        """
        self._next_reading = reading = self._next_reading or AsyncResult()
        with self._read_lock:
            if not reading.ready():
                self._next_reading = None
                try:
                    reading.set(self._read())
                except StoreDown as error:
                    reading.set_exception(error)
            sockets.take_turn()  # each of those who share it makes its page in a turn of its own
            return reading.get()

    def _read(self) -> list[dict[str, Any]]:
        listed, now = self._entries.all(), presence.now(self._entries)
        for some in slices(listed):
            for each in some:
                _add_now(each, now.get(each['uuid'], presence.Now()))
        return listed

    def _shown(self, uuid: UUID) -> dict[str, Any]:
        """What can be shown of an entry, even if its value in Redis makes no sense."""
        shown = self._entries.shown(str(uuid)) or abort(404, f'There is no entry {uuid}.')
        _add_now(shown, presence.now_of(self._entries, shown['uuid']))
        return shown

    def _document(self, uuid: UUID) -> dict[str, Any]:
        """What its files hold, with its secret."""
        entry = self._entries.get(str(uuid)) or abort(404, f'There is no entry {uuid}.')
        return files.document(entry, self._options)

    def _what_to_trust(self) -> tuple[bool, bool]:
        """Whether clients have to trust a certificate of ours, and an authority of ours."""
        if not self._options.key_file:
            return False, False
        try:
            found = certificate.read(self._options)
        except Mistake:
            return True, True  # the notice on the page says what is wrong
        return found.is_ours, found.authority is not None

    def _render(self, template: str, **values: Any) -> str:
        return render_template(template, notice=certificate.notice(self._options), **values)


def _add_now(entry: dict[str, Any], now: presence.Now) -> None:
    entry |= {'now': now, 'state': listing.state(entry, now)}


def _qr_code(text: str) -> Markup:
    code = segno.make(text, micro=False)
    return Markup(code.svg_inline(omitsize=True, light='#fff'))


@lru_cache(64)
def _qr_code_of_url(url: str) -> Markup:
    # It takes 7 ms, and an open tab asks each two seconds. A secret's is not kept.
    return _qr_code(url)


def _search(listed: list[dict[str, Any]], wanted: str) -> list[dict[str, Any]]:
    return [each for some in slices(listed) for each in some if _matches(each, wanted)]


def _matches(entry: dict[str, Any], wanted: str) -> bool:
    texts = entry['uuid'], *entry['labels'], entry['now'].address, entry['state']
    return any(wanted in text.casefold() for text in texts)


def _attachment(content: str | bytes, name: str) -> Response:
    response = Response(content, mimetype='application/octet-stream', headers=NO_REFERRER)
    response.headers.set('Content-Disposition', 'attachment', filename=name)
    return response


def _mistake_page(mistake: Mistake) -> ResponseReturnValue:
    status = 503 if isinstance(mistake, StoreDown) else 500
    return render_template('error.html', error=str(mistake)), status


def create_app(
    entries: Entries, options: Options, announce: Callable[[str], None] | None = None
) -> Flask:
    """The WSGI application. `announce` is given the login codes. None: no login is needed."""
    app, page = Flask(__name__), Page(entries, options)
    Login(app, options.page_host, announce)
    app.jinja_env.globals |= {'server': files.authority(options), 'digits': DIGITS}
    app.jinja_env.globals['label_characters'] = LABEL_CHARACTERS
    app.jinja_env.globals['names_domain'] = options.names_domain
    app.jinja_env.filters |= {'ago': words.ago, 'utc': words.utc, 'lasting': words.lasting}
    one = '/entries/<uuid:uuid>'
    changes = 'any(rename, name, unname, disable, enable, rekey, delete)'
    app.add_url_rule('/', view_func=page.index)
    app.add_url_rule('/entries', view_func=page.create, methods=['POST'])
    app.add_url_rule(one, view_func=page.entry)
    app.add_url_rule(f'{one}/<{changes}:what>', view_func=page.change, methods=['POST'])
    app.add_url_rule(f'{one}/secret', view_func=page.secret, methods=['POST'])
    app.add_url_rule(f'{one}.<any(json, js):suffix>', view_func=page.download)
    app.add_url_rule(f'{one}.pyz', view_func=page.download_pack)
    app.add_url_rule('/registrar.crt', view_func=page.download_certificate)
    app.add_url_rule('/registrar-ca.crt', view_func=page.download_authority)
    app.register_error_handler(Mistake, _mistake_page)
    for name in app.jinja_env.list_templates():
        app.jinja_env.get_template(name)  # compiled now, it delays no request
    return app


def serve(options: Options, host: str, port: int, login: bool) -> None:
    """Serves the page until SIGTERM or SIGINT. Raises ClickException or Mistake."""
    server, entries = page_server.listen(host, port), Entries(options)
    entries.open()
    if not (is_loopback := addresses.is_loopback(host)):
        log.warning('other machines can reach the page on %s, and nothing is encrypted', host)
    name = host if is_loopback else options.page_host or '127.0.0.1'
    url = f'http://{addresses.authority(name, server.server_port)}'

    def announce(code: str) -> None:
        with suppress(OSError):  # nobody reads the output any more
            click.echo(f'To log in, open this link, which works once: {url}/login?code={code}')

    server.start()
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, server.stop)
    server.application = create_app(entries, options, announce if login else None)
    gc.freeze()  # a search for garbage in all loaded modules would delay a request
    if not login:
        click.echo(f'The page is at {url}')
    try:
        server.serve_forever()
    finally:
        entries.close()
