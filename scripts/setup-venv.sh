#!/usr/bin/env bash
# Makes the virtual environment that the Makefile's targets run in, with vdisk in it (editable) and the tools of its tests.
#
#   scripts/setup-venv.sh FOLDER [PYTHON]
set -euo pipefail

folder="$1"
python="${2:-}"

if [ -z "$python" ]; then
    for name in python3 python3.13 python3.12 python3.11; do
        if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            python="$name"
            break
        fi
    done
fi
if [ -z "$python" ]; then
    echo "setup: vdisk needs Python 3.11 or newer (Debian 12, Ubuntu 24.04); found: $(python3 -V 2>&1 || echo none)" >&2
    exit 1
fi

if [ ! -x "$folder/bin/python" ]; then
    # Debian and Ubuntu keep ensurepip, which venv needs, in a package of its own.
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        version="$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')"
        if ! command -v apt-get >/dev/null; then
            echo "setup: $python has no venv module; install it" >&2
            exit 1
        elif [ "$(id -u)" = 0 ]; then
            as_root=()
        elif command -v sudo >/dev/null; then
            as_root=(sudo)
        else
            echo "setup: install $version-venv first (as root: apt-get install $version-venv)" >&2
            exit 1
        fi
        echo "setup: installing $version-venv"
        "${as_root[@]}" apt-get update -q
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$version-venv"
    fi
    "$python" -m venv "$folder"
fi

"$folder/bin/python" -m pip install --quiet --disable-pip-version-check -e '.[dev]'
touch "$folder/.ready"
echo "setup: $("$folder/bin/python" -V) in $folder, with $("$folder/bin/vdisk" --version 2>/dev/null || echo vdisk)"
