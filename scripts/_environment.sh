# Sourced by the other scripts: finds Python 3.11+, makes a virtual environment, talks on stderr.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '%s\n' "$*" >&2; }

find_python() {
  for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11 python; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  say "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11 if it is not on the PATH"
  exit 3
}

# make_environment FOLDER: creates it once and activates it
make_environment() {
  if [ ! -x "$1/bin/python" ]; then
    say "making an environment in $1"
    "$(find_python)" -m venv "$1"
  fi
  export VIRTUAL_ENV="$PWD/$1" PATH="$PWD/$1/bin:$PATH" PIP_DISABLE_PIP_VERSION_CHECK=1
  unset PYTHONDONTWRITEBYTECODE # images set it: every process that a test starts would compile anew
}
