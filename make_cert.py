"""Makes the key and the self-signed certificate of the server, where local.py names them."""

from rendezvous.wire import in_venv

in_venv.go_on()

from rendezvous.admin import certificate
from rendezvous.wire import options

if __name__ == '__main__':
    options.main(certificate.make)
