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

say 'all tests: about 5 minutes on two cores that have nothing else to do'
# Three parts side by side, the largest files by turns: most tests wait most of the time.
parts=('' '' '') number=0 others=()
for file in $(ls -S tests/*/test_*.py); do parts[number++ % 3]+=" $file"; done
for part in 1 2; do
  .venv/bin/python -m pytest ${parts[part]} >".venv/part$part.log" 2>&1 &
  others+=($!)
done
trap 'kill "${others[@]}" 2>/dev/null' EXIT # Ctrl-C is for the first one alone
.venv/bin/python -m pytest ${parts[0]}
status=$?
for part in 1 2; do
  wait "${others[part - 1]}" || status=$?
  cat ".venv/part$part.log"
done
say "took $((SECONDS / 60)) min $((SECONDS % 60)) s"
exit "$status"
