#!/usr/bin/env bash
# Writes what the program says about itself, its man page and completions, to where shells and man look under a share/ directory.
#
#   install-generated.sh VMM SHARE
set -euo pipefail
vmm=$1 share=$2

generate() { # KIND FILE
    mkdir -p "$(dirname "$share/$2")"
    "$vmm" --generate "$1" >"$share/$2"
    chmod 644 "$share/$2"
    echo "$share/$2"
}
generate man man/man1/vmm.1
generate bash bash-completion/completions/vmm
generate zsh zsh/site-functions/_vmm
generate fish fish/vendor_completions.d/vmm.fish
