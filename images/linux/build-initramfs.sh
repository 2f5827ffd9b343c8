#!/usr/bin/env bash
# Builds target/images/initramfs.cpio: busybox from Debian's busybox-static, and init. Uncompressed, because a kernel
# whose ring 0 is emulated takes minutes to decompress it; the same bytes from the same input; needs no root.
#
#   build-initramfs.sh [--add FILE]... [--output NAME]
#
# --add puts a program into /bin as well; --output names the link in target/images/ instead of initramfs.cpio.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

added=()
name=initramfs.cpio
while [ $# -gt 0 ]; do
    case $1-${2+value} in
        --add-value) [ -f "$2" ] || die "there is no file $2"; added+=("$2") ;;
        --output-value) name=$2 ;;
        *) die "unknown option $1, or one without its value; there are --add FILE, --output NAME" ;;
    esac
    shift 2
done
one_at_a_time

version=$(package_version busybox-static)
key=$({
    echo "$version"
    cat "$linux_dir/init" "$0"
    for f in "${added[@]}"; do basename "$f"; cat "$f"; done
} | hash_of)
out=$cache/initramfs-$key.cpio

# The newc format, cpio(5): a header of 13 numbers in hex, the name, the data, the last two padded to 4 bytes.
inode=0
header() { # NAME MODE SIZE NLINK [MAJOR MINOR]
    inode=$((inode + 1))
    printf '070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x' \
        $inode "$2" 0 0 "$4" 0 "$3" 0 0 "${5-0}" "${6-0}" $((${#1} + 1)) 0
    printf '%s\0' "$1"
    pad $((110 + ${#1} + 1))
}
pad() { head -c $(((4 - $1 % 4) % 4)) /dev/zero; }
directory() { header "$1" 0040755 0 2; }
device() { header "$1" 0020600 0 1 "$2" "$3"; }
file() { # NAME MODE SOURCE
    local size
    size=$(stat -c %s "$3")
    header "$1" "$2" "$size" 1
    cat "$3"
    pad "$size"
}
text() { # NAME MODE TEXT
    header "$1" "$2" ${#3} 1
    printf %s "$3"
    pad ${#3}
}

if [ ! -f "$out" ]; then
    busybox=$(unpacked busybox-static "$version")/bin/busybox
    tmp=$(mktemp "$out.XXXXXX")
    trap 'rm -f "$tmp"' EXIT
    {
        for d in bin dev etc etc/acpi etc/acpi/PWRF mnt proc root sys tmp var var/log var/run; do directory $d; done
        device dev/console 5 1
        device dev/null 1 3
        file bin/busybox 0100755 "$busybox"
        for f in "${added[@]}"; do file "bin/$(basename "$f")" 0100755 "$f"; done
        text bin/sh 0120777 busybox
        file init 0100755 "$linux_dir/init"
        text etc/passwd 0100644 $'root::0:0:root:/root:/bin/sh\n'
        text etc/fstab 0100644 $'proc /proc proc\nsysfs /sys sysfs\ndevtmpfs /dev devtmpfs\n'
        text etc/acpi/PWRF/00000080 0100755 $'#!/bin/sh\npoweroff\n'
        header TRAILER!!! 0 0 1
    } >"$tmp"
    chmod 644 "$tmp"
    mv "$tmp" "$out"
fi
publish "$out" "$name"
