# Sourced by the other scripts, in the project's folder: .venv with what the file $1 lists.
say() { printf '%s: %s\n' "$0" "$*" >&2; }

if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  say 'Python 3.11 or newer is needed: apt install python3'
  exit 78
fi
if [ ! -w . ]; then
  say "cannot write in $PWD: run it as the user to whom that belongs"
  exit 78
fi
# What is installed is compared with what is listed: an update of the project updates it.
if ! cat requirements.txt "$1" | cmp -s - ".venv/installed.$1"; then
  if ! python3 -m venv .venv 2>/dev/null; then
    say 'python3 -m venv does not work here: apt install python3-venv'
    exit 78
  fi
  say "installing what $1 lists"
  if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$1"; then
    say "could not install what $1 lists"
    exit 1
  fi
  for list in requirements.txt "$1"; do # the other list holds this one
    cat requirements.txt "$list" >".venv/installed.$list"
  done
fi
