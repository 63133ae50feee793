#!/usr/bin/env bash
# Sets up what the tests need and runs them; arguments go to pytest.
set -u
cd "$(dirname "$0")/.." || exit 1
. bin/setup.sh requirements-dev.txt
.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/python -m pytest "$@"
