# shellcheck shell=bash
# What the launchers read their options with; sourced by each of them.

fail() {
    local said="$*"
    printf '%s: error: %s\n' "${0##*/}" "${said//[[:cntrl:]]/ }" >&2
    exit 2
}

has_value() { # option and what follows it
    [[ ${2:-} && $2 != -* ]] || fail "$1 needs a value (one that begins with - is written ./-...)"
}

whole() { # option, value
    if [[ ! $2 =~ ^[1-9][0-9]{0,4}$ ]] || (($2 > 65535)); then
        fail "$1 is '$2': it must be a whole number, 1 to 65535"
    fi
}
