#!/usr/bin/env bash
# Sets up what is missing, then serves, and serves again when the server dies. Ctrl-C or SIGTERM
# ends it all; SIGHUP makes the server read key and certificate again; SIGUSR2, or this script
# started once more, has a new server take over from the one that runs: for a new version.
set -u
trap '' HUP USR2 # as long as nobody is there to heed them
umask 077
cd "$(dirname "$0")/.." || exit 1
. bin/setup.sh requirements.txt

if [ ! -e local.py ]; then
  cp local.example.py local.py
  say 'made local.py: only this machine can connect; for everybody, set rendezvous_host in it'
fi
.venv/bin/python make_cert.py --if-missing || exit

child='' next='' stopping=''
serve() { # in the background; it does not outlive this script, and heeds a SIGHUP once it can
  (trap '' HUP && exec setpriv --pdeathsig TERM .venv/bin/python server.py) &
}
stop() {
  stopping=yes
  kill -TERM $child $next 2>/dev/null
}
renew() { # where the new server can not serve, the old one goes on
  (. bin/setup.sh requirements.txt) && serve && next=$!
}
trap stop TERM INT
trap 'kill -HUP $child 2>/dev/null' HUP
trap renew USR2

await() { # the end of the child, whatever signals come meanwhile; its exit status
  local status
  while wait "$child"; status=$?; kill -0 $child 2>/dev/null; do :; done
  if [ "$status" = 0 ] && [ -n "$next" ] && [ -z "$stopping" ]; then
    child=$next next='' # it has taken over
    await
    return
  fi
  child=''
  return "$status"
}

pause=1
while [ -z "$stopping" ]; do
  began=$SECONDS
  serve
  child=$!
  [ -z "$stopping" ] || stop
  await
  status=$?
  case $status in 0 | 78) exit "$status" ;; esac
  [ -z "$stopping" ] || exit "$status"
  [ $((SECONDS - began)) -lt 60 ] || pause=0
  say "server.py ended with status $status, again in $pause s; see server.log"
  sleep "$pause" &
  child=$!
  await
  pause=$((pause < 32 ? pause * 2 + !pause : 60))
done
