# Sourced by the other scripts: makes .venv for the extras in $1 ("" or "[test,lint]"), once for each pyproject.toml and constraints.txt.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

environment() {
  local extras=$1 python=${PYTHON:-python3} venv=$root/.venv
  local stamp=$venv/darkroom.stamp wanted
  wanted=$(cat "$root/pyproject.toml" "$root/constraints.txt" | cksum)
  if grep -qxF "$wanted $extras" "$stamp" 2>/dev/null; then return; fi

  if ! command -v "$python" >/dev/null; then
    echo "darkroom needs Python 3.11 or newer, and there is no $python. Install it, or name one: PYTHON=/path/to/python3.11 $0" >&2
    exit 1
  fi
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "darkroom needs Python 3.11 or newer; $python is $("$python" -V 2>&1). Name another: PYTHON=/path/to/python3.11 $0" >&2
    exit 1
  fi
  if [ ! -x "$venv/bin/python" ]; then
    echo "Making $venv (once) ..." >&2
    "$python" -m venv "$venv" || { echo "The module venv is missing (Debian: apt install python3-venv)." >&2; exit 1; }
  fi
  echo "Installing what darkroom needs ..." >&2
  local pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c "$root/constraints.txt")
  # torch by its pinned version first: it is the one large download
  "${pip[@]}" "$(grep '^torch==' "$root/constraints.txt")" && "${pip[@]}" -e "$root$extras" || exit 1
  grep -qF "$wanted " "$stamp" 2>/dev/null || : >"$stamp"
  echo "$wanted $extras" >>"$stamp"
}
