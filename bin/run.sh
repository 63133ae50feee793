#!/bin/sh
# Sets up what is missing, and becomes server.py, which serves. Started once more, it has the server
# that runs here take the new version. Arguments go to server.py.
set -u
umask 077
cd "$(dirname "$0")/.." || exit 1
say() { printf '%s: %s\n' "$0" "$*" >&2; }
sh bin/setup.sh || exit

if [ ! -e local.py ]; then
  cp local.example.py local.py || exit 1
  say 'made local.py: only this machine can connect; for everybody, set rendezvous_host in it'
fi
.venv/bin/python make_cert.py --if-missing || exit
exec .venv/bin/python server.py "$@"
