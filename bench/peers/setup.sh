#!/bin/sh
# Installs what the bench runs: Debian packages where it runs as root (else it names those that are
# missing), this server's packages in .venv/bench, those of the Python peers in .venv/bench-peers,
# those of Node.js in .venv/bench-node. The bench may run without a network: nothing is fetched later.
set -eu
cd "$(dirname "$0")/../.."
say() { printf 'bench/peers/setup.sh: %s\n' "$1" >&2; }

missing() {
  for each in ab:apache2-utils curl haproxy ip:iproute2 nginx:nginx-light node:nodejs npm openssl \
    pagekite ssh:openssh-client sshd:openssh-server stunnel:stunnel4 v2ray wrk; do # program:package
    command -v "${each%:*}" >/dev/null || printf ' %s' "${each#*:}"
  done
  /usr/bin/python3 -c 'import ensurepip' 2>/dev/null || printf ' python3-venv'
}
PATH=$PATH:/usr/sbin packages=$(missing)
if [ -n "$packages" ] && [ "$(id -u)" = 0 ]; then
  say "installing$packages"
  policy=/usr/sbin/policy-rc.d kept=
  [ -e $policy ] && kept=$(mktemp) && cp -p $policy "$kept"
  # No daemon is started: what a package would start listens on all addresses.
  trap '[ -n "$kept" ] && mv "$kept" $policy || rm -f $policy' EXIT
  printf '#!/bin/sh\nexit 101\n' >$policy
  chmod 755 $policy
  apt-get -q update >/dev/null
  # shellcheck disable=SC2086 # one word each
  DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends $packages >/dev/null
elif [ -n "$packages" ]; then
  say "some peers are left out without: apt install$packages"
fi

# The distribution's Python, as HAProxy is the distribution's: one that was built by hand without
# --enable-optimizations (as pyenv does) took a quarter more CPU for small requests.
python3=/usr/bin/python3
$python3 -c 'import sys, ensurepip; assert sys.version_info >= (3, 11)' 2>/dev/null ||
  python3=python3
install() { # the list, the folder
  list="$($python3 -V; command -v $python3; cat "$1")"
  [ "$list" != "$(cat "$2/installed" 2>/dev/null)" ] || return 0
  say "installing what $1 lists"
  $python3 -m venv --clear "$2"
  "$2/bin/python" -m pip install --quiet --disable-pip-version-check -r "$1"
  printf '%s\n' "$list" >"$2/installed"
}
mkdir -p .venv
install requirements.txt .venv/bench
install bench/peers/requirements.txt .venv/bench-peers

list=bench/peers/package-lock.json node=.venv/bench-node
if command -v npm >/dev/null && ! cmp -s $list $node/installed; then
  say "installing what $list lists"
  mkdir -p $node
  cp bench/peers/package.json $list $node
  (cd $node && npm ci --silent --ignore-scripts --no-audit --no-fund)
  cp $list $node/installed
fi
