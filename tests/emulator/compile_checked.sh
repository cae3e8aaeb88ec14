#!/bin/sh
# Runs a compiler command and renames what an instrumented kernel calls to copy memory, so that the checks see it.
"$@" || exit
while [ $# -gt 1 ]; do
    if [ "$1" = -o ]; then
        exec objcopy --redefine-sym memcpy=simt_checked_memcpy --redefine-sym memmove=simt_checked_memmove \
            --redefine-sym memset=simt_checked_memset "$2"
    fi
    shift
done
