"""The command line of hidden.py: reads its arguments and the entry, and runs until a signal."""

import argparse
import json
import logging
import os
import signal
import sys
from pathlib import Path

import gevent
from gevent.event import Event

from rendezvous.hidden import service
from rendezvous.hidden.hidden_server import HiddenServer
from rendezvous.hidden.http_proxy import BadProxy
from rendezvous.hidden.target import EXAMPLES, Target, target
from rendezvous.wire import logs
from rendezvous.wire.background_log import Background
from rendezvous.wire.http_head import HOST
from rendezvous.wire.programs import VERSION, Mistake

DESCRIPTION = 'Registers at the rendezvous server and pipes to a local HTTP server.'
FINISH_SECONDS = 30  # for pipes to finish after SIGTERM; the rendezvous server gives them as many
FLAGS = {
    '--forwarded': 'check each request, and tell the local server who asks (X-Forwarded-For and '
    'others)',
    '--insecure': 'take any certificate of an https:// local server, like a self-signed one',
    '--service': 'print a systemd unit with these arguments, and end',
    '--proxy-protocol': 'tell the local server who asks, in a line of the PROXY protocol, version '
    '1, in front of each connection: only for one that is set to expect it',
}
OPTIONS = {
    '--host': (
        str,
        None,
        'NAME',
        'as --forwarded, and the local server gets this in the field Host',
    ),
    '--registrations': (int, 4, 'COUNT', 'how many connections wait for visits (default: 4)'),
    '--proxy': (
        str,
        None,
        'URL',
        'go out through this HTTP proxy, http://HOST:PORT or http://USER:PASSWORD@HOST:PORT '
        '(default: as the environment variables https_proxy and no_proxy say)',
    ),
}


def main(packed: dict | None = None) -> None:
    """`packed`: the entry, where the program itself holds it. Raises Mistake."""
    parser = argparse.ArgumentParser(description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument('--version', action='version', version=VERSION)
    parser.set_defaults(entry=None)
    if packed is None:
        parser.add_argument('entry', type=Path, help='entries/ID.json, as users_app.py made it')
    parser.add_argument('local_server', help=f'where your HTTP server listens: {EXAMPLES}')
    for name, words in FLAGS.items():
        parser.add_argument(name, action='store_true', help=words)
    for name, (kind, default, metavar, words) in OPTIONS.items():
        parser.add_argument(name, type=kind, default=default, metavar=metavar, help=words)
    arguments = parser.parse_args()
    if arguments.registrations < 1:
        raise Mistake('--registrations must be 1 or more')
    if arguments.service and '@' in (arguments.proxy or ''):  # a unit can be read by everybody
        raise Mistake('--service with a password in --proxy: use https_proxy, as the unit says')
    hidden_server = read(arguments, local_server(arguments), packed)
    if arguments.service:
        return print(service.unit(sys.argv, arguments.entry), end='')
    logs.to(Background(logging.StreamHandler()))
    run(hidden_server)


def local_server(arguments: argparse.Namespace) -> Target:
    """Raises Mistake."""
    found = target(arguments.local_server)
    if arguments.insecure and not found.is_tls:
        raise Mistake('--insecure is for a local server with https://')
    host = arguments.host or ('' if arguments.forwarded else None)
    if host and not HOST.fullmatch(host):
        raise Mistake(f'--host {host!r} is not NAME or NAME:PORT, like kitchen.example.com')
    return found._replace(
        is_insecure=arguments.insecure,
        wants_proxy_line=arguments.proxy_protocol,
        forwarding_as=host,
    )


def read(arguments: argparse.Namespace, local_server: Target, packed: dict | None) -> HiddenServer:
    """The hidden server of an ID.json, or of the entry in the program. Raises Mistake."""
    try:
        entry = packed or json.loads(arguments.entry.read_text())
        return HiddenServer(entry, local_server, arguments.registrations, arguments.proxy)
    except BadProxy:
        raise
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        why = f'cannot read {arguments.entry}: {error.strerror}'
        raise Mistake(f'{why}; give the path of ID.json') from None
    except Exception as error:  # the file may hold anything
        why = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise Mistake(f'{arguments.entry} is no ID.json of users_app.py: {why}') from None


def run(hidden_server: HiddenServer) -> None:
    """Returns after a signal, when the pipes are finished."""
    stopping = Event()

    def stop(number: int) -> None:
        if stopping.is_set() and number == signal.SIGINT:
            os._exit(1)  # a second Ctrl-C: somebody does not want to wait
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, stop, number)
    hidden_server.start()
    stopping.wait()
    hidden_server.stop(FINISH_SECONDS)
