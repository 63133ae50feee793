#!/bin/sh
# Installs in .venv the packages that a file lists: bin/setup.sh [requirements.txt]
# Makes .venv again for another Python, and after the folder was moved.
set -eu
cd "$(dirname "$0")/.."
list=${1:-requirements.txt}
say() { printf 'bin/setup.sh: %s\n' "$1" >&2; }
made_for() { python3 -c 'import os, sys; assert sys.version_info >= (3, 11)
print(os.path.realpath(".venv"), *sys.version_info[:2])' 2>/dev/null; }

wanted=$(made_for) || { say 'Python 3.11 or newer is needed: apt install python3'; exit 78; }
[ -w . ] || { say "cannot write in $PWD: run this as the user who owns that folder"; exit 78; }
if [ "$wanted" != "$(cat .venv/made_for 2>/dev/null)" ] || ! .venv/bin/python -c '' 2>/dev/null; then
  rm -rf .venv
  hash -r # python3 may have been the one in .venv
  python3 -m venv .venv >/dev/null 2>&1 ||
    { say 'python3 -m venv does not work: apt install python3-venv'; exit 78; }
  made_for >.venv/made_for
fi
if ! cat requirements.txt "$list" | cmp -s - ".venv/installed.$list"; then
  say "installing what $list lists"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$list" ||
    { say "could not install what $list lists"; exit 1; }
  for each in requirements.txt "$list"; do # the other list holds this one
    cat requirements.txt "$each" >".venv/installed.$each"
  done
fi
