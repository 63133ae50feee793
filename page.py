"""The page of the entries, for a browser on this machine."""

import os
import signal
import socket

import click
import gevent
from flask import Flask, abort, redirect, render_template, request, url_for
from gevent.pywsgi import WSGIServer

import actions
import auth
import options as local
from actions import LABEL_CHARACTERS, Refused
from entries import Entries, StoreDown
from files import FILES
from options import Mistake

HEADERS = {
    'Cache-Control': 'no-store',
    # A label that got past Jinja's escapes would still be no script; no other page may frame ours.
    'Content-Security-Policy': "default-src 'self'; img-src data:; frame-ancestors 'none'",
    'Referrer-Policy': 'same-origin',
}


def app(entries: Entries, options: dict) -> Flask:
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
        digits = 6 if form.get('digits') == '6' else 8
        named = form.get('uuid', ''), form.get('label', '')
        made = actions.create(entries, options, *named, digits)
        return redirect(url_for('index', made=made.name), 303)

    @app.post('/entries/<uuid>/delete')
    def delete(uuid: str):
        actions.remove(entries, uuid)
        return redirect(url_for('index'), 303)

    @app.errorhandler(Refused)
    def refused(error: Refused):
        return show(400, error.message)

    @app.errorhandler(Mistake)
    def mistaken(error: Mistake):
        return show(503 if isinstance(error, StoreDown) else 500, str(error))

    return app


def serve(options: dict, host: str, port: int, login: bool) -> None:
    """Shows the page until a signal ends it. Raises Mistake."""
    entries = Entries(options)
    server = WSGIServer((host, port), app(entries, options), log=None)
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
    click.echo(f'The page is at http://{host}:{server.server_port}')
    try:
        server.serve_forever()
    finally:
        entries.close()
