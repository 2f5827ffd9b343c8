# Sourced by the scripts beside it.
#
# What they make lies in $VMM_CACHE (default ~/.cache/vmm), in directories named after a hash of all that went into
# it; target/images/ in this repository holds links to the current ones.

linux_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$linux_dir/../.." && pwd)
cache=${VMM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vmm}
images=$repo/target/images
mkdir -p "$cache" "$images"

note() { echo "${0##*/}: $*" >&2; }
die() { note "$@"; exit 1; }

# One run at a time: a second one waits, then finds the result in the cache.
one_at_a_time() {
    exec 9>"$cache/${0##*/}.lock"
    flock 9
}

# Half a key is enough of a name, and 16 digits can be read.
hash_of() { sha256sum | cut -c1-16; }

# candidate PACKAGE: the version that apt would take.
candidate() { LC_ALL=C apt-cache policy "$1" 2>/dev/null | sed -n 's/^  Candidate: //p' | grep -vxF '(none)'; }

# package_version PACKAGE: the same, after bringing the lists up to date where they do not know the package.
package_version() {
    command -v apt-get >/dev/null || die "no apt-get here: this is built from Debian 12's packages; run it on Debian 12"
    candidate "$1" && return
    update_lists
    candidate "$1" || die "apt knows no package $1: this wants Debian 12 (bookworm) with its usual sources"
}

update_lists() {
    if [ "$(id -u)" = 0 ]; then apt-get update -qq >&2
    elif sudo -n true 2>/dev/null; then sudo -n apt-get update -qq >&2
    else die "the package lists are missing or old; run: sudo apt-get update"
    fi
}

# unpacked PACKAGE VERSION: the directory where that package lies unpacked; nothing is installed.
unpacked() {
    local dir=$cache/deb/$1_${2//:/%} tmp
    if [ ! -d "$dir" ]; then
        mkdir -p "$cache/deb"
        tmp=$(mktemp -d "$cache/deb/tmp.XXXXXX")
        note "downloading $1 $2"
        (
            cd "$tmp"
            # The lists may name a version that the mirror has replaced: then they are old.
            apt-get -o APT::Sandbox::User=root download -qq "$1=$2" >&2 || { update_lists && apt-get -o APT::Sandbox::User=root download -qq "$1=$2" >&2; } ||
                die "cannot download $1 $2; if its version has changed, run this again"
            dpkg-deb -x ./*.deb root
        ) || { rm -rf "$tmp"; return 1; }
        mv -T "$tmp/root" "$dir"
        rm -rf "$tmp"
    fi
    echo "$dir"
}

# publish FILE NAME: link target/images/NAME to FILE and say so.
publish() {
    ln -sfnT "$1" "$images/$2"
    echo "$images/$2"
}
