# Sourced by the other scripts: makes .venv what setup.py and constraints.txt ask for, and leaves $python in the caller.
# shellcheck shell=bash

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$root/.venv/bin/python"

suitable() {  # a pyenv shim may exist and not run, so the version is asked of the interpreter itself
    "$@" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1
}

find_python() {
    local name
    for name in python3.12 python3.11 python3.10 python3; do
        if suitable "$name"; then
            echo "$name"
            return
        fi
    done
    echo "found no Python 3.10, 3.11 or 3.12 with venv: install one (Debian, Ubuntu: python3-venv too) and try again" >&2
    return 2
}

prepare_environment() {
    local stamp="$root/.venv/installed" wanted base
    wanted="$(cat "$root/setup.py" "$root/constraints.txt" | cksum) $root"
    if [[ -x "$python" && -f "$stamp" && "$(cat "$stamp")" == "$wanted" ]]; then
        return
    fi
    if ! suitable "$python"; then
        base="$(find_python)" || return
        echo "making .venv with $("$base" --version)" >&2
        rm -rf "$root/.venv"
        "$base" -m venv "$root/.venv" || return
    fi
    echo "installing what constraints.txt pins into .venv (a few minutes the first time)" >&2
    "$python" -m pip install --quiet --disable-pip-version-check \
        -c "$root/constraints.txt" -e "$root[test]" >&2 || return
    echo "$wanted" >"$stamp"
}

prepare_environment
