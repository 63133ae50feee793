#!/usr/bin/env bash
# Sets up what is missing, then serves, and serves again when the server dies. Ctrl-C or SIGTERM
# ends it all; SIGHUP makes the server read key and certificate again.
set -u
umask 077
cd "$(dirname "$0")/.." || exit 1
. bin/setup.sh requirements.txt

if [ ! -e local.py ]; then
  cp local.example.py local.py
  say 'made local.py: only this machine can connect; for everybody, set rendezvous_host in it'
fi
.venv/bin/python make_cert.py --if-missing || exit


child='' stopping=''
stop() {
  stopping=yes
  [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
}
trap stop TERM INT
trap '[ -z "$child" ] || kill -HUP "$child" 2>/dev/null' HUP

await() { # the end of the child, whatever signals come meanwhile; its exit status
  local status
  while wait "$child"; status=$?; kill -0 "$child" 2>/dev/null; do :; done
  child=''
  return "$status"
}

pause=1
while [ -z "$stopping" ]; do
  began=$SECONDS
  setpriv --pdeathsig TERM .venv/bin/python server.py & # it does not outlive this script
  child=$!
  [ -z "$stopping" ] || stop
  await
  status=$?
  case $status in 0 | 78) exit "$status" ;; esac
  [ -z "$stopping" ] || exit "$status"
  [ $((SECONDS - began)) -lt 60 ] || pause=1
  say "server.py ended with status $status, again in $pause s; see server.log"
  sleep "$pause" &
  child=$!
  await
  pause=$((pause < 32 ? pause * 2 : 60))
done
