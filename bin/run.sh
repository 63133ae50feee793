#!/usr/bin/env bash
# Sets up what is missing, then serves, and serves again when the server dies. Ctrl-C or SIGTERM
# ends it all; SIGHUP makes the server read key and certificate again; SIGUSR2, or this script
# started once more, has a new server take over from the one that runs: for a new version.
set -u
# Under nohup SIGHUP is ignored, and a shell that starts so cannot heed it later.
if [ -n "$(trap -p HUP)" ] && env --default-signal=HUP true 2>/dev/null; then
  exec env --default-signal=HUP bash "$0"
fi
trap '' HUP USR2 # as long as nobody is there to heed them
umask 077
cd "$(dirname "$0")/.." || exit 1
. bin/setup.sh requirements.txt

if [ ! -e local.py ]; then
  cp local.example.py local.py
  say 'made local.py: only this machine can connect; for everybody, set rendezvous_host in it'
fi
.venv/bin/python make_cert.py --if-missing || exit
export OPENSSL_CONF=$PWD/bin/openssl.cnf

child='' stopping='' signalled='' renewing='' again='' pausing=''
serve() { # in the background; it does not outlive this script, and heeds a SIGHUP once it can
  (trap '' HUP && exec setpriv --pdeathsig TERM .venv/bin/python server.py) &
}
stop() {
  signalled=yes stopping=yes
  kill -TERM $child 2>/dev/null
}
reload() {
  signalled=yes
  kill -HUP $child 2>/dev/null
}
serves() { # or did, if it is dead
  [ "$(cat server.pid 2>/dev/null)" = "$1" ]
}
take_over() { # the old server lets its pipes finish; where the new one cannot serve, it goes on
  rm -f server.pid
  serve
  local next=$!
  while kill -0 $next 2>/dev/null && ! serves $next; do
    sleep 0.1
  done
  ! serves $next || child=$next
  [ -z "$stopping" ] || stop
}
renew() { # one after the other: this is called again within itself
  signalled=yes again=yes
  [ -z "$renewing" ] || return
  renewing=yes
  while [ -n "$again" ]; do
    again=''
    (. bin/setup.sh requirements.txt) || continue
    if [ -n "$pausing" ]; then
      kill $child 2>/dev/null # the pause, and the new server is started
    else
      take_over
    fi
  done
  renewing=''
}
trap stop TERM INT
trap reload HUP
trap renew USR2

await() { # the end of the child, whatever signals come meanwhile; its exit status
  local status=0 found
  while
    signalled=''
    wait "$child" 2>/dev/null
    found=$?
    [ $found = 127 ] || status=$found # 127: it was told already
    [ -n "$signalled" ]
  do :; done
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
  child=$! pausing=yes
  await
  pausing=''
  pause=$((pause < 32 ? pause * 2 + !pause : 60))
done
