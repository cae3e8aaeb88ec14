#!/bin/sh
# Where the CUDA compiler, its binary tools, headers and libraries are: the one place that knows.
#
#   cuda_path.sh root                          the toolkit's folder (with bin, include, lib or lib64)
#   cuda_path.sh include | lib                 headers; the folder of libcudart_static.a
#   cuda_path.sh nvcc | cuobjdump | nvdisasm   a program
#   cuda_path.sh missing                       what `./dev cuda-toolkit` would have to install; nothing if all is there
#
# A whole toolkit wins: CUDA_HOME, the folder of the nvcc in PATH, /usr/local/cuda; else the wheels in .venv-cuda. The programs
# that look into binaries are often left out of a toolkit, so each is looked for in both. Exit 1 if it is nowhere.
here=$(cd "$(dirname "$0")/../.." && pwd)

roots() {
    [ -n "${CUDA_HOME:-}" ] && echo "$CUDA_HOME"
    in_path=$(command -v nvcc) && dirname "$(dirname "$(readlink -f "$in_path")")"
    echo /usr/local/cuda
    for wheels in "$here"/.venv-cuda/lib/python3*/site-packages/nvidia/cu13; do
        echo "$wheels"
    done
}

# The first root that has the compiler and all headers that we include.
root() {
    roots | while IFS= read -r folder; do
        [ -x "$folder/bin/nvcc" ] && [ -f "$folder/include/cuda_runtime_api.h" ] && [ -f "$folder/include/cuda_bf16.h" ] &&
            [ -f "$folder/include/nvtx3/nvToolsExt.h" ] && echo "$folder" && break
    done
}

program() {
    { roots | while IFS= read -r folder; do
        [ -x "$folder/bin/$1" ] && echo "$folder/bin/$1" && break
    done; } || true
}

case ${1:-} in
root) found=$(root) ;;
include) found=$(root) && found=${found:+$found/include} ;;
lib)
    found=$(root)
    for folder in "$found/lib64" "$found/lib"; do
        [ -f "$folder/libcudart_static.a" ] && lib=$folder && break
    done
    found=${lib:-}
    ;;
nvcc) found=$(root) && found=${found:+$found/bin/nvcc} ;;
cuobjdump | nvdisasm) found=$(program "$1") ;;
missing)
    [ -n "$(root)" ] || echo toolkit
    [ -n "$(program cuobjdump)" ] || echo cuobjdump
    [ -n "$(program nvdisasm)" ] || echo nvdisasm
    exit 0
    ;;
*)
    sed -n '4,7s/^# *//p' "$0" >&2
    exit 2
    ;;
esac
[ -n "$found" ] && printf '%s\n' "$found"
