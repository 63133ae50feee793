#!/usr/bin/env bash
# Sets up what the tests need and runs them; arguments go to pytest.
set -u
cd "$(dirname "$0")/.." || exit 1
. bin/setup.sh requirements-dev.txt

PATH=$PATH:/usr/sbin missing=''
while read -r program package; do
  command -v "$program" >/dev/null || missing+=" $package"
done <<'END'
ab apache2-utils
chromedriver chromium-driver
chromium chromium
curl curl
faketime faketime
ip iproute2
nginx nginx-light
node nodejs
openssl openssl
END
if [ -n "$missing" ]; then
  if [ -n "${CI-}" ]; then # where nothing is to be skipped
    { apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -qy install $missing; } >/dev/null || exit 1
  else
    say "some tests are skipped without: apt install$missing"
  fi
fi
.venv/bin/ruff check . && .venv/bin/ruff format --check . || exit 1
[ $# = 0 ] || exec .venv/bin/python -m pytest "$@"

say 'all tests: about 4 minutes on two cores that have nothing else to do'
# Two halves side by side: most tests wait most of the time.
halves=('' '') number=0
for file in tests/test_*.py; do halves[number++ % 2]+=" $file"; done
.venv/bin/python -m pytest ${halves[1]} >.venv/second.log 2>&1 &
second=$!
trap 'kill $second 2>/dev/null' EXIT # Ctrl-C is for the first one alone
.venv/bin/python -m pytest ${halves[0]}
status=$?
wait $second || status=$?
cat .venv/second.log
say "took $((SECONDS / 60)) min $((SECONDS % 60)) s"
exit "$status"
