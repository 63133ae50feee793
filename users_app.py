"""The entries: a page for a browser on this machine, and the same from the shell."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it, at any moment, without a traceback

from rendezvous.wire import programs

programs.use_venv()

from gevent import monkey

monkey.patch_all()

from rendezvous.admin import shell

if __name__ == '__main__':
    programs.main(shell.cli)
