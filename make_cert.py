"""Makes the key and the self-signed certificate of the server, where local.py names them."""

from rendezvous.wire import programs

programs.use_venv()

import click
from cryptography.hazmat.primitives import hashes

from rendezvous.admin import certificate, entry_files
from rendezvous.store import options as local
from rendezvous.wire.programs import Mistake


@click.command(help=__doc__)
@click.option('--force', is_flag=True, help='Replace the old pair. All clients need the new one.')
@click.option('--if-missing', is_flag=True, help='Make a pair only if there is none.')
def make(force: bool, if_missing: bool) -> None:
    options = local.load()
    if not options.key_file:
        if if_missing:
            return
        raise Mistake('key_file is None in local.py: plain HTTP needs no certificate')
    key_file, crt_file = local.path_of(options.key_file), local.path_of(options.crt_file)
    try:
        there = [file for file in (key_file, crt_file) if file.exists()]
        if if_missing and len(there) == 2:
            return
        if there and not force:
            existing = ' and '.join(map(str, there))
            sentence = f'{existing} exists already: set key_file and crt_file in local.py'
            raise Mistake(f'{sentence}, or --force makes a new pair, which all clients need')
        made = certificate.write_pair(options.rendezvous_host, key_file, crt_file)
    except OSError as error:
        why = f'{error.filename or key_file}: {error.strerror}'
        raise Mistake(f'cannot write {why}; set key_file and crt_file in local.py') from None
    end = f'{made.not_valid_after_utc:%Y-%m-%d}'
    print(f'made {key_file} and {crt_file} for {options.rendezvous_host}, valid until {end}')
    print(f'SHA-256 fingerprint: {made.fingerprint(hashes.SHA256()).hex(":").upper()}')
    if force:
        print(f'entry files that hold the new certificate: {entry_files.renew(options)}')
        print('Copy them to the hidden servers again, and the certificate to the mobile clients.')
        print('The server reads it after kill -HUP, or when it is started again.')


if __name__ == '__main__':
    programs.main(make)
