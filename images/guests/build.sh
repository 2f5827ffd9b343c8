#!/bin/sh
# Builds the guests and leaves them in OUTDIR (target/guests of this directory if none is named), ready to boot.
# Then looks into each: what is to run on a KVM that emulates ring 0 must not use instructions that such a KVM lacks.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/target/guests}
target=${CARGO_TARGET_DIR:-$here/target}

cargo build --release --manifest-path "$here/Cargo.toml"
mkdir -p "$out"
for source in "$here"/src/bin/*.rs; do
    cp "$target/release/$(basename "$source" .rs)" "$out/"
done

if ! command -v objdump >/dev/null; then
    echo "the guests' instructions were not checked: there is no objdump (package binutils)" >&2
    exit 0
fi

# Code of ring 3 is in a section of its own, .user, and not looked at. Moves between SSE registers and memory are emulated.
# (int3 is not looked for: the linker fills gaps with it.)
lacking='int|into|icebp|syscall|sysenter|cmpxchg16b|clac|stac|popcnt|crc32[bwlq]?|rdtscp|invpcid|xgetbv|xsave.*|xrstor.*'
lacking="$lacking|f.*|emms|ldmxcsr|stmxcsr|verr|verw|lar.?|lsl.?|monitor|mwait|clwb|clzero|movbe.?|tzcnt.?|lzcnt.?|rdpid"
bad=0
for guest in "$out"/*; do
    name=${guest##*/}
    if [ "$name" = syscalls ] || [ "$name" = ring0 ] || ! objdump -h "$guest" 2>/dev/null | grep -q ' \.text '; then
        continue
    fi
    # The counter keeps its state in vector registers while ring 0 runs, which does not save them.
    moves='^(mov[au]p[sd]|movdq[au]|movnt.*)$'
    [ "$name" = counter ] && moves='^$'
    found=$(objdump -d -j .text --no-show-raw-insn "$guest" | awk -v lacking="^($lacking)\$" -v moves="$moves" '
        /^ +[0-9a-f]+:/ {
            mnemonic = $2 == "lock" ? $3 : $2
            if (mnemonic ~ lacking || /%[xyz]mm/ && mnemonic !~ moves) print
        }')
    if [ -n "$found" ]; then
        printf '%s: instructions that a KVM emulating ring 0 lacks:\n%s\n' "$name" "$found" >&2
        bad=1
    fi
done
exit $bad
