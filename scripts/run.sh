#!/usr/bin/env bash
# Boots Debian's cloud kernel to a shell on this terminal; more options for vmm may follow. VMM names another binary.
set -euo pipefail
cd "$(dirname "$0")/.."

images=target/images
vmm=${VMM:-${CARGO_TARGET_DIR:-target}/release/vmm}
for file in "$vmm" $images/vmlinuz-cloud $images/initramfs.cpio; do
    [ -e "$file" ] || { echo "run.sh: no $file; make run builds it" >&2; exit 1; }
done

[ -t 0 ] && echo "run.sh: poweroff ends the machine; Ctrl-A c is the monitor, Ctrl-A x quits" >&2
exec "$vmm" -m 256M --nographic \
    --kernel $images/vmlinuz-cloud --initrd $images/initramfs.cpio --append "$(cat images/linux/cloud.cmdline)" "$@"
