#!/bin/sh
# Installs what the tests need and runs all of them, or those that the arguments name to pytest.
set -eu
cd "$(dirname "$0")/.."
sh bin/setup.sh requirements-dev.txt

# Applications whose packages would not go with ours have an environment of their own.
list=tests/applications/requirements.txt others=.venv/applications
if ! cmp -s "$list" "$others/installed"; then
  python3 -m venv "$others"
  "$others/bin/python" -m pip install --quiet --disable-pip-version-check -r "$list"
  cp "$list" "$others/installed"
fi

PATH=$PATH:/usr/sbin missing=
for each in ab:apache2-utils apache2 certutil:libnss3-tools chromedriver:chromium-driver chromium \
  curl faketime git haproxy ip:iproute2 nginx:nginx-light node:nodejs openssl \
  prometheus tinyproxy; do # program:package
  command -v "${each%:*}" >/dev/null || missing="$missing ${each#*:}"
done
if [ -n "$missing" ] && [ -n "${CI-}" ]; then # there no test may be skipped
  apt-get -q update >/dev/null
  DEBIAN_FRONTEND=noninteractive apt-get -qy install $missing >/dev/null
elif [ -n "$missing" ]; then
  printf 'bin/test.sh: some tests are skipped without: apt install%s\n' "$missing" >&2
fi
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
.venv/bin/python -m mypy
[ $# != 0 ] || set -- -n 3 --dist worksteal # most tests wait most of the time
exec .venv/bin/python -m pytest "$@"
