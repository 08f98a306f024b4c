#!/bin/sh
# Writes requirements/*.txt: every version and hash that `make` installs, and no address of any
# kind, so that the locks say the same on every machine. Run it with `make lock`; to move the
# versions: `make lock LOCK_ARGS=--upgrade`, or `LOCK_ARGS='--upgrade-package jupyterhub'`.
set -eu
cd "$(dirname "$0")/.."
python=.venv/bin/python
UNIVERSAL=--universal # one lock for every platform and Python
header='# Made by `make lock` from pyproject.toml. Do not edit.'

compile() { # compile NAME ARGUMENTS...: one lock file
    name=$1
    shift
    out="requirements/$name.txt"
    tmp=".tools/lock-$name.txt"
    # uv keeps the versions it finds in its output file, which is why the old lock is copied there.
    if [ -f "$out" ]; then grep -v '^# Made by' "$out" >"$tmp" || true; else rm -f "$tmp"; fi
    "$python" -m uv pip compile --quiet --no-config $UNIVERSAL --generate-hashes \
        --python-version 3.11 --no-emit-index-url --no-emit-find-links --no-header \
        --output-file "$tmp" "$@" ${LOCK_ARGS:-}
    { echo "$header"; cat "$tmp"; } >"$out"
    rm -f "$tmp"
    echo "==> $out: $(grep -c '==' "$out") packages"
}

mkdir -p requirements .tools
compile run pyproject.toml --extra hub --group notebook --group starters --group node --group build
# One set of versions: the tests run what `make run` runs.
compile test pyproject.toml --extra hub --extra postgres --extra docker --group notebook --group starters \
    --group node --group build --group test --constraints requirements/run.txt
compile dev --group dev --constraints requirements/test.txt
compile compiler --group compiler
compile docs --group docs --constraints requirements/test.txt

# The images, in the layers in which they install (images/README.md), and in the versions that the
# tests run. Whatever two of them share has one version.
compile image-hub pyproject.toml --extra hub --extra postgres --extra docker \
    --group image-pip --constraints requirements/test.txt
compile image-proxy --group node --group image-proxy --constraints requirements/test.txt
compile image-notebook pyproject.toml --group notebook --group image-notebook \
    --group image-pip --constraints requirements/test.txt
compile image-cpu --group starters --constraints requirements/test.txt
UNIVERSAL="--python-platform x86_64-manylinux_2_28"
compile image-cuda --group starters --group cuda --constraints requirements/test.txt \
    --constraints requirements/image-notebook.txt

# torch: the CPU build for the machine that tests run on, because PyPI's build for Linux brings
# gigabytes of CUDA that no test uses. The CPU wheels are not on PyPI, so uv looks where pip is told
# to look; where it finds none, the lock stays as it is.
links=$("$python" -m pip config get global.find-links 2>/dev/null || true)
if [ -n "$links" ]; then UV_FIND_LINKS=$links; export UV_FIND_LINKS; fi
cp requirements/torch.txt .tools/torch-before.txt 2>/dev/null || true
compile torch --group torch --constraints requirements/run.txt
if ! grep -q '^torch==.*+cpu' requirements/torch.txt; then
    echo "==> requirements/torch.txt: left as it was, because no CPU build of torch is in sight"
    cp .tools/torch-before.txt requirements/torch.txt
fi
