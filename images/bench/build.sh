#!/bin/sh
# Builds the guest programs of the CPU benchmark, one static binary for any x86-64 CPU: OUTDIR/bench
# (target/images/bench if no OUTDIR is named). It runs natively as well.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
out=${1:-${here%/images/bench}/target/images/bench}
mkdir -p "$out"
# Scalar code stays scalar, and no product is fused into a sum: results are the same to the bit on every CPU.
"${CC:-cc}" -std=gnu11 -O2 -march=x86-64 -mtune=generic -fno-tree-vectorize -ffp-contract=off -fno-math-errno -static -s \
    -Wall -Wextra -Wno-missing-field-initializers \
    -o "$out/bench" "$here/main.c" "$here/integer.c" "$here/float.c" "$here/memory.c" "$here/system.c"
echo "$out/bench"
