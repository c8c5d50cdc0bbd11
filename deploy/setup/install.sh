#!/usr/bin/env bash
# Creates .venv from a committed lock file, or does nothing where it is up to date.
#
#   deploy/setup/install.sh            CUDA where nvidia-smi finds a GPU, CPU otherwise
#   HOLDFAST_ACCELERATOR=cpu|cuda      decides it by hand
#   PYTHON=python3.12                  the interpreter to make the environment from
#
# torch comes first and alone, the rest without resolving: see the head of deploy/locks/cpu.txt for why.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

VENV=.venv
TORCH=2.13.0
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
STAMP=$VENV/.holdfast-stamp
LOG=$VENV/install.log

say() { printf '%s\n' "$*"; }

accelerator() {
  if [ -n "${HOLDFAST_ACCELERATOR:-}" ]; then
    say "$HOLDFAST_ACCELERATOR"
  elif command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
    say cuda
  else
    say cpu
  fi
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.11 python3.12 python3.13}; do
    if command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
}

# Everything that is missing is said in one go.
check_machine() {
  local missing=()
  [ "$(uname -s)" = Linux ] || missing+=("Linux: vLLM's wheels are for Linux only; this is $(uname -s)")
  if [ -z "$PYTHON_FOUND" ]; then
    missing+=("Python 3.11, 3.12 or 3.13 (Debian/Ubuntu: apt-get install python3 python3-venv; another one by PYTHON=/path/to/python3)")
  elif ! "$PYTHON_FOUND" -c 'import venv, ensurepip' 2>/dev/null; then
    missing+=("the venv module of $PYTHON_FOUND (Debian/Ubuntu: apt-get install python3-venv)")
  fi
  command -v g++ >/dev/null 2>&1 || missing+=("g++: vLLM compiles a kernel at the first request (Debian/Ubuntu: apt-get install g++)")
  command -v make >/dev/null 2>&1 || missing+=("make (Debian/Ubuntu: apt-get install make)")
  local free_gib
  free_gib=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
  [ "$free_gib" -ge "$NEEDED_GIB" ] || missing+=("disk space: $NEEDED_GIB GiB are needed here, $free_gib GiB are free in $PWD")
  if [ ${#missing[@]} -gt 0 ]; then
    say "Holdfast cannot be set up. Missing:" >&2
    printf '  - %s\n' "${missing[@]}" >&2
    exit 1
  fi
}

wanted_stamp() {
  { say "$ACCELERATOR $PWD"; cat "$LOCK" pyproject.toml deploy/setup/install.sh; } | sha256sum | cut -d' ' -f1
}

# Runs one step with its output in the log; on failure shows the end of it.
step() {
  local title=$1 started=$SECONDS
  shift
  printf '  %s ... ' "$title"
  if "$@" >>"$LOG" 2>&1; then
    say "$((SECONDS - started)) s"
  else
    say failed
    tail -n 25 "$LOG" >&2
    say "The whole output is in $LOG" >&2
    exit 1
  fi
}

pip() { "$VENV/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }

install_torch() {
  if [ "$ACCELERATOR" = cuda ]; then
    pip install --no-deps "torch===$TORCH"
    return
  fi
  # Resolves where pip is set up for it. Elsewhere PyTorch's own index is named for this one package: an index that cannot
  # be reached costs pip seconds for every package that it looks up.
  pip install --no-deps "torch==$TORCH+cpu" || pip install --no-deps --index-url "$TORCH_CPU_INDEX" "torch==$TORCH+cpu"
}

ACCELERATOR=$(accelerator)
case $ACCELERATOR in
  cpu) NEEDED_GIB=8 ;;
  cuda) NEEDED_GIB=20 ;;
  *) say "HOLDFAST_ACCELERATOR is '$ACCELERATOR'; allowed: cpu, cuda" >&2; exit 2 ;;
esac
LOCK=deploy/locks/$ACCELERATOR.txt

if [ "$(cat "$STAMP" 2>/dev/null || true)" = "$(wanted_stamp)" ] && "$VENV/bin/python" -c '' 2>/dev/null; then
  exit 0
fi

PYTHON_FOUND=$(find_python)
if [ -d "$VENV/lib" ]; then NEEDED_GIB=2; fi
check_machine
# Packages of both kinds do not mix, and the scripts of an environment hold the folder that it was made in.
ORIGIN="$ACCELERATOR $PWD"
if [ -e "$VENV" ] && { [ "$(cat "$VENV/.holdfast-origin" 2>/dev/null || say "$ORIGIN")" != "$ORIGIN" ] || ! "$VENV/bin/python" -c '' 2>/dev/null; }; then
  say "The environment in $VENV is of another kind, was moved, or lost its Python; it is made anew."
  rm -rf -- "$VENV"
fi

say "Setting up $VENV from $LOCK with $PYTHON_FOUND:"
[ -x "$VENV/bin/python" ] || "$PYTHON_FOUND" -m venv "$VENV"
rm -f "$STAMP"
: >"$LOG"
say "$ORIGIN" >"$VENV/.holdfast-origin"
step "torch $TORCH ($ACCELERATOR)" install_torch
step "$(grep -c '==' "$LOCK") packages" pip install --no-deps -r "$LOCK"
step "holdfast itself" pip install --no-deps --no-build-isolation -e .
wanted_stamp >"$STAMP"
say "Ready. Try: make demo, make test, $VENV/bin/holdfast --help"
