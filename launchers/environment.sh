# Sourced by the other scripts, with the extras of setup.py that they need: source environment.sh test,data
# Makes .venv what setup.py and constraints.txt ask for, and leaves $root, $python and recipe_from in the caller.
# AFM_SCALE_PYTHON names an interpreter that has all of it already, in an image or a module: nothing is installed then.
# shellcheck shell=bash

unset CDPATH # exported, it makes cd print where it went, and go somewhere else
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

covers() {  # HAVE WANTED: comma-separated extras
    local extra
    for extra in ${2//,/ }; do
        [[ ",$1," == *",$extra,"* ]] || return
    done
}

prepare_environment() {  # EXTRAS
    local stamp="$root/.venv/installed" extras="$1" sources base line_1="" line_2="" installed="" extra resolved=""
    local pip=("$python" -m pip install --quiet --disable-pip-version-check -c "$root/constraints.txt")
    sources="$(cat "$root/setup.py" "$root/constraints.txt" | cksum) $root"
    if [[ -x "$python" && -f "$stamp" ]]; then
        { read -r line_1 && read -r line_2; } <"$stamp" || true
        [[ "$line_1" != "$sources" ]] || installed="$line_2"
        if [[ -n "$installed" ]] && covers "$installed" "$extras"; then
            return
        fi
    fi
    if ! suitable "$python"; then
        base="$(find_python)" || return
        echo "making .venv with $("$base" --version)" >&2
        rm -rf "$root/.venv"
        "$base" -m venv "$root/.venv" || return
        installed=""
    fi
    extras="${installed:+$installed,}$extras"  # what one script has asked for stays, so that two do not take turns
    echo "installing what constraints.txt pins into .venv (a few minutes the first time)" >&2
    for extra in ${extras//,/ }; do
        [[ "$extra" == evaluation ]] || resolved+="${resolved:+,}$extra"
    done
    "${pip[@]}" -e "$root${resolved:+[$resolved]}" >&2 || return
    if covers "$extras" evaluation; then  # alone: it asks for torchvision, which is not used (setup.py says more)
        "${pip[@]}" --no-deps torch-fidelity >&2 || return
    fi
    printf '%s\n' "$sources" "$extras" >"$stamp"
}

recipe_from() {  # [RECIPE] [a.b=c ...]: leaves $recipe, an absolute path if it is a file here, and ${settings[@]}
    recipe="configs/recipes/digits_afm.yaml"
    if [[ $# -gt 0 && "$1" != *=* ]]; then
        recipe="$1"
        shift
        [[ ! -e "$recipe" ]] || recipe="$(cd "$(dirname "$recipe")" && pwd)/$(basename "$recipe")"
    fi
    settings=("$@")
}

if [[ -n "${AFM_SCALE_PYTHON:-}" ]]; then
    python="$(command -v "$AFM_SCALE_PYTHON")" || {
        echo "AFM_SCALE_PYTHON=$AFM_SCALE_PYTHON is no program here: name an interpreter with the packages of setup.py," \
            "or unset it to have .venv made" >&2
        exit 2
    }
else
    prepare_environment "$1"
fi
