"""The entries: a page for a browser on this machine, and the same from the shell."""

from gevent import monkey

monkey.patch_all()

import json
import os
import signal
import socket
import uuid as uuids
from contextlib import suppress
from pathlib import Path

import click
import gevent
from cryptography import x509
from flask import Flask, abort, redirect, render_template, request, url_for
from gevent.pywsgi import WSGIServer

import auth
import options as local
from entries import DIGITS, Entries, StoreDown
from make_cert import write
from options import HERE, Mistake

HOST, PORT = '127.0.0.1', 8893
LABEL_CHARACTERS = 100
FILES = HERE / 'entries'
HEADERS = {
    'Cache-Control': 'no-store',
    # A label that got past Jinja's escapes would still be no script; no other page may frame ours.
    'Content-Security-Policy': "default-src 'self'; img-src data:; frame-ancestors 'none'",
    'Referrer-Policy': 'same-origin',
}


class Refused(click.ClickException):
    """What was asked for can not be done, and why: a sentence."""


def create(entries: Entries, options: dict, uuid: str, label: str, digits: int) -> tuple[str, Path]:
    """Makes an entry and its two files; the UUID and the files' path less the suffix.

    `uuid` may be empty: one is made up. Raises Refused, Mistake or StoreDown.
    """
    uuid, label = uuid.strip().lower() or str(uuids.uuid4()), label.strip()
    if not auth.UUID.fullmatch(uuid):
        raise Refused(f'{uuid!r} is no UUID, like {uuids.uuid4()}; left out, one is made up')
    if len(label) > LABEL_CHARACTERS or not label.isprintable():
        raise Refused(f'a label has at most {LABEL_CHARACTERS} characters, all of them printable')
    server = how_to_reach(options)
    entry = entries.add(uuid, [label] if label else [], digits)
    if not entry:
        raise Refused(f'{uuid} has an entry already: delete it first, or take another UUID')
    names = 'authParams', 'uuid', 'labels', 'server'
    values = entry['authParams'], [uuid], entry['labels'], server
    text = json.dumps(dict(zip(names, values, strict=True)), indent=2)
    try:
        FILES.mkdir(mode=0o700, exist_ok=True)
        write(FILES / f'{uuid}.json', f'{text}\n'.encode(), 0o600)
        write(FILES / f'{uuid}.js', f'exports.params = {text};\n'.encode(), 0o600)
    except OSError as error:
        with suppress(Mistake):
            remove(entries, uuid)
        raise Mistake(f'can not write {error.filename or FILES}: {error.strerror}') from None
    return uuid, FILES / uuid


def how_to_reach(options: dict) -> dict:
    """The `server` of an entry's files: with the certificate, where it is its own authority."""
    server = {'hostname': options['rendezvous_host'], 'port': options['rendezvous_port']}
    if options['key_file']:
        crt_file = local.file(options['crt_file'])
        try:
            pem = crt_file.read_text('ascii', 'ignore')
            certificate = x509.load_pem_x509_certificate(pem.encode())
        except (OSError, ValueError):
            raise Mistake(f'can not read {crt_file}: python make_cert.py makes it') from None
        if certificate.issuer == certificate.subject:
            server['ca'] = pem
    return server


def remove(entries: Entries, uuid: str) -> None:
    """Deletes an entry and its files. Raises Refused, Mistake or StoreDown."""
    uuid = uuid.strip().lower()
    if not (auth.UUID.fullmatch(uuid) and entries.delete(uuid)):
        raise Refused(f'there is no entry {uuid!r}')
    try:
        for suffix in ('json', 'js'):
            (FILES / f'{uuid}.{suffix}').unlink(missing_ok=True)
    except OSError as error:
        raise Mistake(f'can not delete {error.filename}: {error.strerror}') from None


def page(entries: Entries, options: dict) -> Flask:
    """The WSGI application."""
    app = Flask(__name__)

    def show(status: int = 200, error: str = '', **more):
        try:
            listed = entries.all()
        except StoreDown as down:
            listed, status, error = None, 503, str(down)
        more |= {'entries': listed, 'error': error, 'label_characters': LABEL_CHARACTERS}
        return render_template('users.html', **more), status, HEADERS

    @app.before_request
    def only_this_page() -> None:
        """Refuses what another page in the same browser sends, by DNS rebinding or by a form."""
        name = request.host.rpartition(':')[0] or request.host
        if not local.is_loopback(name):
            abort(403)
        origin = request.headers.get('Origin')
        if request.method != 'GET' and origin not in (None, f'http://{request.host}'):
            abort(403)

    @app.get('/')
    def index():
        made = request.args.get('made', '')
        known = auth.UUID.fullmatch(made) and (FILES / f'{made}.json').exists()
        return show(made=known and made, files=FILES / made)

    @app.post('/entries')
    def add():
        form = request.form
        digits = 8 if form.get('digits') == '8' else DIGITS
        named = form.get('uuid', ''), form.get('label', '')
        uuid, _ = create(entries, options, *named, digits)
        return redirect(url_for('index', made=uuid), 303)

    @app.post('/entries/<uuid>/delete')
    def delete(uuid: str):
        remove(entries, uuid)
        return redirect(url_for('index'), 303)

    @app.errorhandler(Refused)
    def refused(error: Refused):
        return show(400, error.message)

    @app.errorhandler(Mistake)
    def mistaken(error: Mistake):
        return show(503 if isinstance(error, StoreDown) else 500, str(error))

    return app


def serve(port: int) -> None:
    options = local.load()
    entries = Entries(options)
    server = WSGIServer((HOST, port), page(entries, options), log=None)
    try:
        server.init_socket()
    except OSError as error:
        why = os.strerror(error.errno)
        raise Mistake(f'can not listen on port {port}: {why}; --port N takes another') from None
    # Inherited by what it accepts: pywsgi sends head and body apart, 40 ms apart without this.
    server.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    entries.open()
    server.start()
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, server.stop)
    click.echo(f'The page is at http://{HOST}:{server.server_port}')
    try:
        server.serve_forever()
    finally:
        entries.close()


@click.group(invoke_without_command=True, help=__doc__)
@click.option(
    '--port', type=click.IntRange(0, 65535), default=PORT, show_default=True, help='Of the page.'
)
@click.pass_context
def cli(context: click.Context, port: int) -> None:
    os.umask(0o077)
    if not context.invoked_subcommand:
        serve(port)
        return
    context.obj = Entries(local.load())
    context.call_on_close(context.obj.close)
    context.obj.open()


@cli.command('add')
@click.option('--uuid', default='', help='Made up when left out.')
@click.option(
    '--digits',
    type=click.IntRange(6, 8),
    default=DIGITS,
    show_default=True,
    help='Of its codes: 8 are harder to guess, programs for node-rendezvous know only 6.',
)
@click.argument('label', default='')
@click.pass_obj
def add_entry(entries: Entries, uuid: str, digits: int, label: str) -> None:
    """Makes an entry, and its files for the hidden server."""
    _, files = create(entries, local.load(), uuid, label, digits)
    click.echo(f'{files}.json  for: python hidden.py {files.name}.json 127.0.0.1:8000')
    click.echo(f"{files}.js  for Node.js: require('./{files.name}').params")
    click.echo('Copy one of them to the hidden server; it holds the secret.')


@cli.command('list')
@click.pass_obj
def list_entries(entries: Entries) -> None:
    """Lists the entries: UUID and label."""
    for entry in entries.all():
        click.echo(f'{entry["uuid"]}  {", ".join(entry["labels"])}'.rstrip())


@cli.command('delete')
@click.argument('uuid')
@click.pass_obj
def delete_entry(entries: Entries, uuid: str) -> None:
    """Deletes an entry, and its files here."""
    remove(entries, uuid)
    click.echo(f'deleted {uuid.lower()}')


if __name__ == '__main__':
    local.main(cli)
