"""The page of the entries, put together: which address means what, and who answers it.

`login.py` says who may use it. Every form works without JavaScript. With it, the page asks for
itself every two seconds, and static/page.js updates the parts that are marked `data-live`.
"""

import gc
import logging
import signal
import uuid as uuids
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

import click
import gevent
from flask import Flask, Response, render_template, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException

from rendezvous.admin import (
    answers,
    certificate,
    changes_page,
    entry_files,
    login_link,
    page_server,
    pictures,
    reader,
    visits,
    why,
    words,
)
from rendezvous.admin.actions import LABEL_CHARACTERS, Unable
from rendezvous.admin.changes_page import Changes
from rendezvous.admin.entry_page import EntryPage
from rendezvous.admin.index_page import Index
from rendezvous.admin.local_file import LocalFile
from rendezvous.admin.login import Login
from rendezvous.admin.look import Looks
from rendezvous.admin.metrics import Metrics
from rendezvous.admin.page_server import HANDLER
from rendezvous.store.entries import DIGITS, Entries, StoreDown
from rendezvous.store.options import Options
from rendezvous.store.state import STATES
from rendezvous.wire import addresses, codes
from rendezvous.wire.programs import Mistake

log = logging.getLogger('page')


def create_app(
    entries: Entries,
    options: Options,
    announce: Callable[[str], None] | None = None,
    local_file: LocalFile | None = None,
) -> Flask:
    """The WSGI application. `announce` is given the login codes. None: no login is needed.

    `local_file`: where the options come from.
    """
    app, looks = Flask(__name__), Looks(entries, options)
    app.extensions['looks'] = looks
    app.after_request(answers.finish)  # the first one is called last
    Login(app, options, announce, entries)
    _add_pages(app, entries, options, looks)
    _add_words(app, options, local_file)
    app.register_error_handler(Mistake, _mistake_page)
    app.after_request(lambda response: _tell(looks, response))
    if options.page_prefix:
        app.wsgi_app = _under(options.page_prefix, app.wsgi_app)  # type: ignore[method-assign]
    for name in app.jinja_env.list_templates():
        app.jinja_env.get_template(name)  # compiled now, it delays no request
    return app


def _add_pages(app: Flask, entries: Entries, options: Options, looks: Looks) -> None:
    index, entry = Index(entries, options, looks), EntryPage(entries, options, looks)
    changes, metrics = Changes(entries, options, looks), Metrics(entries, options, looks)
    one, whats = '/entries/<uuid:uuid>', ', '.join(changes_page.WHATS)
    for path, name, view, method in (
        ('/', 'index', index.view, 'GET'),
        (one, 'entry', entry.view, 'GET'),
        (f'{one}/history', 'history', entry.history, 'GET'),
        (f'{one}/hours.csv', 'hours', entry.hours, 'GET'),
        (f'{one}.<any(json, js):suffix>', 'file', entry.file, 'GET'),
        (f'{one}.pyz', 'pack', entry.pack, 'GET'),
        (f'{one}/secret', 'secret', entry.secret, 'POST'),
        ('/registrar.crt', 'certificate', entry.certificate, 'GET'),
        ('/registrar-ca.crt', 'authority', entry.authority, 'GET'),
        ('/entries', 'create', changes.create, 'POST'),
        (f'{one}/<any({whats}):what>', 'change', changes.change, 'POST'),
        ('/several', 'several', changes.several, 'POST'),
        ('/log', 'log', changes.log, 'GET'),
        ('/metrics', 'metrics', metrics.view, 'GET'),
    ):
        app.add_url_rule(path, name, view, methods=[method])

    def unable(error: Unable) -> ResponseReturnValue:
        """The page with the form that cannot be done, and why."""
        uuid = (request.view_args or {}).get('uuid')
        try:
            return entry.view(uuid, 400, error.message) if uuid else index.view(400, error.message)
        except (HTTPException, Mistake) as worse:  # there is no such entry, or Redis is down
            return app.handle_user_exception(worse)

    app.register_error_handler(Unable, unable)


def _add_words(app: Flask, options: Options, local_file: LocalFile | None) -> None:
    """What every template may use."""
    app.jinja_env.filters |= {
        'brief': why.brief,
        'ended': visits.ended,
        'lasting': words.lasting,
        'plural': words.plural,
        'size': words.size,
        'utc': words.utc,
    }
    app.jinja_env.globals |= {
        'authority': entry_files.authority(options),
        'digits': DIGITS,
        'label_characters': LABEL_CHARACTERS,
        'length': words.length,
        'names_domain': options.names_domain,
        'made_up': lambda: str(uuids.uuid4()),
        'pictures': pictures,
        'state_names': STATES,
    }

    @app.context_processor
    def of_request() -> dict[str, Any]:
        is_admitted = request.environ[HANDLER].admitted  # strangers are not told what is wrong
        return {
            'clock': reader.clock(),
            'in_utc': reader.in_utc(),
            'notice': certificate.notice(options),
            'outdated': local_file.notice() if local_file and is_admitted else '',
            'done': changes_page.said(),
        }


def _tell(looks: Looks, response: Response) -> Response:
    """After a form of ours, the next look sees what was done to all entries that it is about."""
    if request.method == 'POST' and request.environ[HANDLER].admitted:
        fields = [value for _, value in request.form.items(multi=True)]
        text = ' '.join([request.path, response.location or '', *fields])
        looks.changed(codes.UUID.findall(text.lower()))
    return response


def _under(prefix: str, application: Callable[..., Any]) -> Callable[..., Any]:
    """The application below a path, whether the proxy passes that path on or takes it off."""

    def below(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        path = environ['PATH_INFO']
        if path == prefix or path.startswith(f'{prefix}/'):
            environ['PATH_INFO'] = path[len(prefix) :] or '/'
        environ['SCRIPT_NAME'] = prefix
        return application(environ, start_response)

    return below


def _mistake_page(mistake: Mistake) -> ResponseReturnValue:
    status = 503 if isinstance(mistake, StoreDown) else 500
    return render_template('error.html', error=str(mistake)), status


def serve(options: Options, host: str, port: int, login: bool) -> None:
    """Serves the page until SIGTERM or SIGINT. Raises ClickException or Mistake."""
    # Without it Flask would write the traceback of a fault where pywsgi throws it away.
    logging.basicConfig(format='%(message)s')
    server = page_server.listen(addresses.to_bind(host), port)
    url = _url(options, host, server.server_port)

    def link(code: str) -> str:
        return f'{url}/login?code={code}'

    def announce(code: str) -> None:
        with suppress(OSError):  # nobody reads the output any more
            click.echo(f'To log in, open this link, which works once: {link(code)}')

    def fresh_link() -> str:
        return link(server.application.extensions['login'].new_code()) if login else url

    with closing(Entries(options)) as entries:
        entries.open()
        server.start()
        for number in (signal.SIGTERM, signal.SIGINT):
            gevent.signal_handler(number, server.stop)
        to_tell = announce if login else None
        # It listens before the first link is told: who has read that may ask for another one.
        with closing(login_link.listen(fresh_link)):
            server.application = create_app(entries, options, to_tell, LocalFile(options))
            gc.freeze()  # a search for garbage in all loaded modules would delay a request
            if not login:
                click.echo(f'The page is at {url}')
            server.serve_forever()


def _url(options: Options, host: str, port: int) -> str:
    """Where browsers find it, without a slash at the end."""
    is_loopback = addresses.is_loopback(host)
    if not is_loopback:
        log.warning('other machines can reach the page on %s, and nothing is encrypted', host)
    if options.page_url:
        return f'{options.page_origin}{options.page_prefix}'
    name = addresses.to_bind(host) if is_loopback else options.page_host or '127.0.0.1'
    return f'http://{addresses.authority(name, port)}'
