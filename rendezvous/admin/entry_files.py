"""An entry's files for the hidden server, `entries/ID.json` and `ID.js`. They hold its secret."""

import json
from pathlib import Path
from typing import Any

from rendezvous.admin import atomic, certificate
from rendezvous.store import entry_json
from rendezvous.store.options import Options
from rendezvous.wire import addresses
from rendezvous.wire.programs import HERE, Mistake

FILES = HERE / 'entries'


def document(entry: dict[str, Any], options: Options) -> dict[str, Any]:
    """The content of an entry's files, with its secret. Raises Mistake."""
    if not entry_json.is_sound(entry):
        raise Mistake(f'the entry {entry["uuid"]} has no usable secret: give it a new one')
    return {
        'authParams': entry['authParams'],
        'uuid': [entry['uuid']],
        'labels': entry_json.summary(entry)['labels'],
        'server': _server(entry['uuid'], options),
    }


def how_to_reach(options: Options) -> dict[str, Any]:
    """The `server` of an entry's files; `ca` is a certificate of our own. Raises Mistake."""
    server: dict[str, Any] = {'hostname': options.rendezvous_host, 'port': options.rendezvous_port}
    if options.key_file:
        found = certificate.read(options)
        if found.is_ours:
            server['ca'] = found.pem  # with the authority, it trusts the next certificate, too
    return server


def _server(uuid: str, options: Options) -> dict[str, Any]:
    names = {'url': url(options, uuid)} if options.names_domain else {}
    return how_to_reach(options) | names


def authority(options: Options) -> str:
    """Host and port of the rendezvous server, as in a URL."""
    return _authority(options.rendezvous_host, options.rendezvous_port)


def url(options: Options, uuid: str, name: str = '') -> str:
    """Where mobile clients go. Without `names_domain` it is the same for all hidden servers."""
    domain = options.names_domain
    host = f'{name or uuid}.{domain}' if domain else options.rendezvous_host
    return f'https://{_authority(host, options.rendezvous_port)}/'


def _authority(host: str, port: int) -> str:
    return addresses.authority(host, port).removesuffix(':443')


def text(document: dict[str, Any], suffix: str) -> str:
    """The text of ID.json, or of ID.js, which a program in Node.js can `require`."""
    written = json.dumps(document, indent=2)
    return f'{written}\n' if suffix == 'json' else f'exports.params = {written};\n'


def write(entry: dict[str, Any], options: Options) -> Path:
    """Writes both files of an entry. Returns their path without the suffix. Raises Mistake."""
    return _write(FILES / entry['uuid'], document(entry, options))


def renew(options: Options) -> int:
    """Puts a new certificate into the files that are here. Returns how many. Raises Mistake."""
    paths = list(FILES.glob('*-*-*-*-*.json'))
    for path in paths:
        try:
            written = json.loads(path.read_text()) | {'server': _server(path.stem, options)}
        except (OSError, ValueError, TypeError) as error:
            raise Mistake(f'cannot read {path} ({error}): delete it, and rekey its entry') from None
        _write(path.with_suffix(''), written)
    return len(paths)


def _write(path: Path, document: dict[str, Any]) -> Path:
    try:
        FILES.mkdir(mode=0o700, exist_ok=True)
        for suffix in ('json', 'js'):
            octets = text(document, suffix).encode()
            atomic.write(path.with_suffix(f'.{suffix}'), octets, 0o600)
    except OSError as error:
        raise Mistake(f'cannot write {error.filename or FILES}: {error.strerror}') from None
    return path


def remove(uuid: str) -> None:
    """Deletes the files of an entry, if there are any. Raises Mistake."""
    try:
        for suffix in ('json', 'js'):
            (FILES / f'{uuid}.{suffix}').unlink(missing_ok=True)
    except OSError as error:
        raise Mistake(f'cannot delete {error.filename}: {error.strerror}') from None
