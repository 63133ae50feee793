"""The rendezvous server."""

from rendezvous.wire import programs

programs.use_venv()

from gevent import monkey

monkey.patch_all()

from rendezvous.server import worker

if __name__ == '__main__':
    programs.main(worker.main)
