"""The rendezvous server."""

from rendezvous.wire import in_venv

in_venv.go_on()

from gevent import monkey

monkey.patch_all()

from rendezvous.server import worker
from rendezvous.wire import options

if __name__ == '__main__':
    options.main(worker.main)
