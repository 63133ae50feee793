"""The hidden server's end: registers at the rendezvous server and pipes to a local HTTP server."""

from rendezvous.wire import in_venv

in_venv.go_on()

from gevent import monkey

monkey.patch_all()

from rendezvous.hidden import hidden_server
from rendezvous.wire import options

if __name__ == '__main__':
    options.main(hidden_server.main)
