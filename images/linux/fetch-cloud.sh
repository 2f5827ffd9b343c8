#!/usr/bin/env bash
# Fetches Debian's own cloud kernel, unchanged: target/images/vmlinuz-cloud. Nothing is installed.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
one_at_a_time

meta=linux-image-cloud-amd64
package_version $meta >/dev/null
package=$(apt-cache depends $meta | sed -n 's/^ *Depends: \(linux-image-.*-cloud-amd64\)$/\1/p')
[ -n "$package" ] || die "$meta depends on no kernel; see: apt-cache depends $meta"
version=$(package_version "$package")
root=$(unpacked "$package" "$version")
publish "$root/boot/vmlinuz-${package#linux-image-}" vmlinuz-cloud
