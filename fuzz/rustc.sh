#!/bin/sh
# Calls rustc as it was asked to; see .cargo/config.toml. Only cargo-fuzz asks for coverage counters.
case "$*" in
*sanitizer-coverage*)
    RUSTC_BOOTSTRAP=1
    export RUSTC_BOOTSTRAP
    ;;
esac
exec "$@"
