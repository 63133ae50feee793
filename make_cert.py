"""Makes the key and the self-signed certificate of the server, where local.py names them."""

from rendezvous.wire import programs

programs.use_venv()

from rendezvous.admin import certificate

if __name__ == '__main__':
    programs.main(certificate.make)
