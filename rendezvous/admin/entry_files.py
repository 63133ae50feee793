"""An entry's files for the hidden server, `entries/ID.json` and `ID.js`: they hold its secret."""

import json
from pathlib import Path

from cryptography import x509

from rendezvous.admin import certificate as make_cert
from rendezvous.store import entry_json
from rendezvous.store import options as local
from rendezvous.store.options import Options
from rendezvous.wire import addresses
from rendezvous.wire.programs import HERE, Mistake

FILES = HERE / 'entries'


def document(entry: dict, options: Options) -> dict:
    """What the files of an entry hold, with its secret. Raises Mistake."""
    if not entry_json.is_sound(entry):
        raise Mistake(f'the entry {entry["uuid"]} makes no sense: give it a new secret')
    return {
        'authParams': entry['authParams'],
        'uuid': [entry['uuid']],
        'labels': entry_json.summary(entry)['labels'],
        'server': how_to_reach(options),
    }


def how_to_reach(options: Options) -> dict:
    """The `server` of an entry's files: with the certificate, where it is its own authority."""
    server = {'hostname': options.rendezvous_host, 'port': options.rendezvous_port}
    if options.key_file:
        pem, certificate = read_certificate(options)
        if certificate.issuer == certificate.subject:
            server['ca'] = pem
    return server


def authority(options: Options) -> str:
    """The host and the port of the rendezvous server, as they stand in a URL."""
    host, port = options.rendezvous_host, options.rendezvous_port
    return addresses.authority(host, port).removesuffix(':443')


def read_certificate(options: Options) -> tuple[str, x509.Certificate]:
    """What `crt_file` holds: as it is, and its first certificate. Raises Mistake."""
    crt_file = local.path_of(options.crt_file)
    try:
        pem = crt_file.read_text('ascii', 'ignore')
        return pem, x509.load_pem_x509_certificate(pem.encode())
    except OSError:
        raise Mistake(f'cannot read {crt_file}: {local.MAKE_CERT} makes it') from None
    except ValueError:
        sentence = f'{crt_file} holds no certificate: set crt_file in local.py'
        raise Mistake(f'{sentence}, or {local.MAKE_CERT} --force makes a new pair') from None


def as_json(document: dict) -> str:
    """What ID.json holds."""
    return json.dumps(document, indent=2) + '\n'


def as_js(document: dict) -> str:
    """What ID.js holds, which a program in Node.js requires."""
    return f'exports.params = {json.dumps(document, indent=2)};\n'


def write(entry: dict, options: Options) -> Path:
    """Writes both files of an entry; their path less the suffix. Raises Mistake."""
    return _write(FILES / entry['uuid'], document(entry, options))


def renew(options: Options) -> int:
    """Writes the files that are here once more, for a new certificate; how many. Raises Mistake."""
    paths = list(FILES.glob('*-*-*-*-*.json'))
    for path in paths:
        try:
            written = json.loads(path.read_text()) | {'server': how_to_reach(options)}
        except (OSError, ValueError, TypeError) as error:
            raise Mistake(f'cannot read {path} ({error}): delete it, and rekey its entry') from None
        _write(path.with_suffix(''), written)
    return len(paths)


def _write(path: Path, written: dict) -> Path:
    try:
        FILES.mkdir(mode=0o700, exist_ok=True)
        make_cert.write(path.with_suffix('.json'), as_json(written).encode(), 0o600)
        make_cert.write(path.with_suffix('.js'), as_js(written).encode(), 0o600)
    except OSError as error:
        raise Mistake(f'cannot write {error.filename or FILES}: {error.strerror}') from None
    return path


def remove(uuid: str) -> None:
    """Deletes the files of an entry, where there are any. Raises Mistake."""
    try:
        for suffix in ('json', 'js'):
            (FILES / f'{uuid}.{suffix}').unlink(missing_ok=True)
    except OSError as error:
        raise Mistake(f'cannot delete {error.filename}: {error.strerror}') from None
