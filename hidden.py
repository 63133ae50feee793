"""The hidden server's end: registers at the rendezvous server and pipes to a local HTTP server."""

from rendezvous.wire import programs

programs.use_venv()

from gevent import monkey

monkey.patch_all()

from rendezvous.hidden import command

if __name__ == '__main__':
    programs.main(command.main)
