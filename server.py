"""The rendezvous server: the parent, or with --worker one of its workers."""

import os
import sys
from pathlib import Path

# Groups of the key exchange and ciphers: OpenSSL reads it when it is loaded, in all our processes.
os.environ['OPENSSL_CONF'] = str(Path(__file__).resolve().parent / 'rendezvous/server/openssl.cnf')

from rendezvous.wire import programs

programs.use_venv()

if {'--worker', '--check'} & set(sys.argv):
    from gevent import monkey

    monkey.patch_all()

    from rendezvous.server import parent  # noqa: F401 - --check finds its mistakes, too
    from rendezvous.server.worker import main
else:
    from rendezvous.server.parent import main

if __name__ == '__main__':
    programs.main(main)
