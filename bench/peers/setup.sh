#!/bin/sh
# Installs what the bench compares with: Debian packages where it runs as root (else it names those
# that are missing), Python packages in .venv/bench, Node.js packages in .venv/bench-node.
# The bench may run without a network, so nothing is fetched later.
set -eu
cd "$(dirname "$0")/../.."
say() { printf 'bench/peers/setup.sh: %s\n' "$1" >&2; }

missing() {
  for each in ab:apache2-utils curl haproxy ip:iproute2 nginx:nginx-light node:nodejs npm openssl \
    pagekite ssh:openssh-client sshd:openssh-server stunnel:stunnel4 v2ray wrk; do # program:package
    command -v "${each%:*}" >/dev/null || printf ' %s' "${each#*:}"
  done
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

list=bench/peers/requirements.txt python=.venv/bench
if ! cmp -s $list $python/installed; then
  say "installing what $list lists"
  python3 -m venv --clear $python
  $python/bin/python -m pip install --quiet --disable-pip-version-check -r $list
  cp $list $python/installed
fi

list=bench/peers/package-lock.json node=.venv/bench-node
if command -v npm >/dev/null && ! cmp -s $list $node/installed; then
  say "installing what $list lists"
  mkdir -p $node
  cp bench/peers/package.json $list $node
  (cd $node && npm ci --silent --ignore-scripts --no-audit --no-fund)
  cp $list $node/installed
fi
