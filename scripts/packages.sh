#!/usr/bin/env bash
# Installs those of Debian's packages that a group names and that are missing; as root or by sudo, else says which.
#
#   packages.sh GROUP...     groups: build (compiling Rust), test (what tests compare with), linux (compiling the small Linux)
set -euo pipefail

wanted=()
for group in "$@"; do
    case $group in
        build) wanted+=(gcc libc6-dev make) ;;
        test) wanted+=(qemu-utils gdb) ;;
        linux) wanted+=(bc bison flex gcc libc6-dev libelf-dev lz4 make patch xz-utils) ;;
        *) echo "packages.sh: no group $group; there are: build, test, linux" >&2; exit 1 ;;
    esac
done

if ! command -v dpkg-query >/dev/null; then
    echo "packages.sh: this is no Debian; what these packages hold has to be there: ${wanted[*]}" >&2
    exit 0
fi

missing=()
for package in $(printf '%s\n' "${wanted[@]}" | sort -u); do
    status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing+=("$package")
done
[ ${#missing[@]} = 0 ] && exit 0

root=()
if [ "$(id -u)" != 0 ]; then
    if ! sudo -n true 2>/dev/null; then
        echo "packages.sh: missing, and not root: sudo apt-get update && sudo apt-get install ${missing[*]}" >&2
        exit 1
    fi
    root=(sudo -n)
fi
echo "packages.sh: installing ${missing[*]}" >&2
"${root[@]}" apt-get update -qq
"${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
