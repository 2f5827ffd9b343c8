#!/usr/bin/env bash
# Builds the small Linux: Debian's linux-source-6.1, small.config, patches/. Some five minutes on two cores the first
# time, at once after that.
#
#   build-small.sh          target/images/{vmlinux,bzImage}
#   build-small.sh --acpi   target/images/{vmlinux,bzImage}-acpi, with ACPI and its power button
set -euo pipefail
. "$(dirname "$0")/lib.sh"
one_at_a_time

fragments=("$linux_dir/small.config")
suffix=
case "${1-}" in
    '') ;;
    --acpi) suffix=-acpi fragments+=("$linux_dir/acpi.config") ;;
    *) die "unknown option $1; there is --acpi" ;;
esac

package=linux-source-6.1
version=$(package_version $package)

compile() { # in the unpacked source, with .config in place
    env -u MAKEFLAGS -u MFLAGS ARCH=x86_64 \
        KBUILD_BUILD_USER=vmm KBUILD_BUILD_HOST=vmm KBUILD_BUILD_TIMESTAMP='2026-01-01 00:00 UTC' \
        nice make -s -j"$(nproc)" "$@"
}

# What compile() does is an input too, its comments are not.
key=$({ echo "$version"; cat "${fragments[@]}" "$linux_dir"/patches/*.patch; declare -f compile; } | hash_of)
out=$cache/linux-small$suffix-$key

if [ ! -d "$out" ]; then
    for tool in gcc make bc bison flex lz4 xz patch; do
        command -v $tool >/dev/null || die "no $tool; run: make packages"
    done
    source=$(unpacked $package "$version")/usr/src/$package.tar.xz
    work=$cache/linux-build
    rm -rf "$work"
    mkdir "$work"
    note "unpacking $package $version"
    tar -xf "$source" -C "$work" --strip-components=1
    cd "$work"
    for p in "$linux_dir"/patches/*.patch; do patch -s -p1 <"$p"; done

    log=$cache/linux-small$suffix.log
    cat "${fragments[@]}" >.config
    compile olddefconfig >"$log" 2>&1 || { tail -n 20 "$log" >&2; die "the kernel cannot be configured"; }
    # A later fragment may take back a line of an earlier one: only the last word on each option counts.
    cat "${fragments[@]}" | tac | sed -nE 's/^(# )?(CONFIG_[A-Z0-9_]+).*/\2 &/p' | awk '!seen[$1]++' | while read -r _ line; do
        grep -qxF -- "$line" .config || die "the kernel's configuration does not take: $line"
    done

    note "building the kernel, some five minutes; the log is $log"
    compile vmlinux bzImage >"$log" 2>&1 || { tail -n 20 "$log" >&2; die "the kernel does not build"; }
    mkdir result
    cp vmlinux arch/x86/boot/bzImage .config result/
    mv -T result "$out"
    rm -rf "$work"
fi
publish "$out/vmlinux" "vmlinux$suffix"
publish "$out/bzImage" "bzImage$suffix"
