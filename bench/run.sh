#!/bin/sh
# This server beside what people would pick instead: bench/run.sh [--quick] [--only b,c] [--peers ssh]
# Installs what it needs (as root; else it names the Debian packages), then measures for about
# 23 minutes and writes tables and a picture to bench/results/.
set -eu
cd "$(dirname "$0")/.."
bench/peers/setup.sh
PATH=$PATH:/usr/sbin
# Some peers listen on all addresses: in a network of its own, which has loopback alone
inside='ip link set lo up && exec .venv/bench/bin/python -m bench "$@"'
for private in 'unshare -n' 'unshare -rn'; do
  # shellcheck disable=SC2086 # two words
  if $private ip link set lo up 2>/dev/null; then exec $private sh -c "$inside" sh "$@"; fi
done
printf 'bench/run.sh: no network of its own here: peers that need it are left out\n' >&2
exec .venv/bench/bin/python -m bench "$@"
