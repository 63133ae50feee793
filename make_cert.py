"""Makes the server's key and certificate, and the authority that signs this one and the next ones.

The first two are where local.py names them. The authority and its key are beside them.
"""

from rendezvous.wire import programs

programs.use_venv()

import os
import sys
from pathlib import Path

import click
from cryptography.hazmat.primitives import hashes

from rendezvous.admin import certificate, entry_files, membership
from rendezvous.store import options as local
from rendezvous.store.options import Options
from rendezvous.wire.programs import Mistake


@click.command(help=__doc__)
@click.option('--force', is_flag=True, help='Replace them all. All clients need the new ones.')
@click.option('--if-missing', is_flag=True, help='Make them if there are none, else as --renew.')
@click.option('--renew', is_flag=True, help='Make the next certificate, if one is due.')
@click.option('--node', is_flag=True, hidden=True)  # for a worker: see server/membership.py
def make(force: bool, if_missing: bool, renew: bool, node: bool) -> None:
    if node:
        sys.stdout.buffer.write(membership.pem_for(sys.stdin.buffer.read()))
        return
    options = local.load(warn=False)
    if not options.key_file:
        if if_missing or renew:
            return
        raise Mistake('key_file is None in local.py: plain HTTP needs no certificate')
    pair = local.path_of(options.key_file), local.path_of(options.crt_file)
    if renew:
        if not make_next(options) and (notice := certificate.notice(options)):
            raise Mistake(notice)
        return
    missing = [file for file in pair if not os.path.exists(file)]
    there = [file for file in (*pair, *map(certificate.beside, pair)) if os.path.exists(file)]
    if if_missing and not missing:
        try:
            make_next(options)
        except Mistake as mistake:  # the server starts with what there is
            print(f'make_cert.py: {mistake}', file=sys.stderr)
        return
    if there and not force:
        raise Mistake(what_is_there(there, missing))
    certificate.write_pair(options.rendezvous_host, *pair, options.names_domain)
    say_what_is_there(options)
    if force:
        print(f'entry files that hold the new certificate: {entry_files.renew(options)}')
        print('Copy them to the hidden servers again, and the certificate to the mobile clients.')
        print('The server reads it after kill -HUP, or when it is started again.')


def make_next(options: Options) -> bool:
    """Whether a certificate was due, and is made. Raises Mistake."""
    if made := certificate.renew(options):
        end = f'{made.not_valid_after_utc:%Y-%m-%d}'
        print(f'made the next certificate in {options.crt_file}, valid until {end}')
    return made is not None


def what_is_there(there: list[Path], missing: list[Path]) -> str:
    """The sentence where make_cert.py would overwrite files."""
    existing, lost = (' and '.join(map(str, files)) for files in (there, missing))
    but = f', but {lost} is missing: bring it back, or' if missing else ':'
    options = 'set key_file and crt_file in local.py'
    force = '--force makes new ones, which all clients need'
    return f'there is already {existing}{but} {options}, or {force}'


def say_what_is_there(options: Options) -> None:
    key_file, crt_file = local.path_of(str(options.key_file)), local.path_of(options.crt_file)
    found = certificate.read(options)
    end = f'{found.leaf.not_valid_after_utc:%Y-%m-%d}'
    print(f'made {key_file} and {crt_file} for {options.rendezvous_host}, valid until {end}')
    if authority := found.authority:  # else another program has written there meanwhile
        end = f'{authority.not_valid_after_utc:%Y-%m-%d}'
        fingerprint = authority.fingerprint(hashes.SHA256()).hex(':').upper()
        ours = certificate.beside(key_file), certificate.beside(crt_file)
        print(f'made {ours[0]} and {ours[1]}, the authority that signs it, valid until {end}')
        print(f'SHA-256 fingerprint of the authority: {fingerprint}')
        print(f'For curl, Python, Node.js and other programs: {crt_file.name}.')
        print(f'For phones, browsers and Java: {ours[1].name}.')


if __name__ == '__main__':
    programs.main(make)
