#!/usr/bin/env bash
# What `make test-versions` runs: for every Python that is found, the fast tests in a fresh clone and environment, and the
# README's first example with nothing but the wheel.
#
#     tests/versions.sh [--wheel-only] [VERSION ...]        all of 3.11 3.12 3.13 if none is named
#
# What is not committed is not tested. Pythons come from PATH (`pythonX.Y`) or pyenv.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
tests=true
versions=()
for argument in "$@"; do
    case $argument in
        --wheel-only) tests=false ;;
        -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0"; exit ;;
        3.[0-9]*) versions+=("$argument") ;;
        *) echo "versions.sh: $argument is no version such as 3.12 (--help)" >&2; exit 2 ;;
    esac
done
[ ${#versions[@]} -gt 0 ] || versions=(3.11 3.12 3.13)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

find_python() {  # prints the interpreter of a version, nothing where there is none
    local path
    for path in "$(command -v "python$1" || true)" "${HOME:-/}"/.pyenv/versions/"$1".*/bin/python; do
        if [ -x "$path" ] && "$path" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null; then
            echo "$path"
            return
        fi
    done
}

readme_example() {  # the README's first Python block
    sed -n '/^```python$/,/^```$/p' "$root/README.md" | sed -n '2,/^```$/p' | sed '$d'
}

wheel=
found=0
for version in "${versions[@]}"; do
    python=$(find_python "$version")
    if [ -z "$python" ]; then
        echo "Python $version: not found, left out" >&2
        continue
    fi
    found=$((found + 1))
    clone="$work/$version"
    git clone --quiet "$root" "$clone"
    if $tests; then
        echo "Python $version: fast tests of $(git -C "$clone" rev-parse --short HEAD)"
        make --no-print-directory -C "$clone" PYTHON="$python" test
    fi
    if [ -z "$wheel" ]; then
        "$python" -m venv "$work/build"
        "$work/build/bin/python" -m pip install --quiet --disable-pip-version-check build
        "$work/build/bin/python" -m build --outdir "$work/dist" "$clone" > "$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
        wheel=$(echo "$work"/dist/*.whl)
    fi
    echo "Python $version: the README's first example with $(basename "$wheel") alone"
    "$python" -m venv "$work/empty-$version"
    "$work/empty-$version/bin/python" -m pip install --quiet --disable-pip-version-check "$wheel"
    (cd "$work" && readme_example | JAX_PLATFORMS=cpu "$work/empty-$version/bin/python" -)
    rm -rf "$clone" "$work/empty-$version"
done
[ "$found" -gt 0 ] || { echo "none of Python ${versions[*]} was found: install one, or put pythonX.Y on PATH" >&2; exit 2; }
echo "passed with $found of the Pythons ${versions[*]}"
