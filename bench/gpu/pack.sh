#!/usr/bin/env bash
# pack.sh [--slim | --only-sm90] [--without FREEZE] WHEELS_DIR OUT_DIR [SIZE]: copies the kit's wheels, cut into pieces of
# at most SIZE MiB (55), for a way to the machine that takes only small files. install.sh joins them again.
#   --slim            without the files of vLLM that a bf16 text model on an H100 or H200 does not load
#   --only-sm90       the same, and without the machine code for other GPUs in the files that stay
#   --without FREEZE  without the packages that FREEZE, the output of `pip freeze` on that machine, lists
set -euo pipefail

fail() {
    echo "pack.sh: $1" >&2
    exit 1
}

here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
slim=()
freeze=/dev/null
while [ $# -gt 0 ]; do
    case $1 in
        --slim) slim=(slim) && shift ;;
        --only-sm90) slim=(slim --only-sm90) && shift ;;
        --without) [ -f "${2:-}" ] || fail "--without takes the output of 'pip freeze' in a file" && freeze=$2 && shift 2 ;;
        -*) fail "unknown option $1: see the head of this script" ;;
        *) break ;;
    esac
done
[ $# -eq 2 ] || [ $# -eq 3 ] || fail "give two folders: pack.sh [OPTIONS] WHEELS_DIR OUT_DIR [SIZE]"
wheels=$1 out=$2 size=${3:-55}
[[ $size =~ ^[1-9][0-9]*$ ]] || fail "SIZE is a whole number of MiB, not '$size'"
[ -d "$wheels" ] || fail "$wheels is no folder: fill it with 'wheels.py fetch' first"
mkdir -p "$out"
[ -z "$(ls -A "$out")" ] || fail "$out is not empty, and an older piece in it would spoil the kit: name a new folder"

# Names are compared in one spelling: lower case, runs of -, _ and . as one -.
normal() {
    tr '[:upper:]' '[:lower:]' | sed -E 's/[-_.]+/-/g'
}
sed -E 's/(==| @ ).*//' "$freeze" | normal > "$out/.there"
shopt -s nullglob
for wheel in "$wheels"/*.whl; do
    name=$(basename "$wheel")
    if grep -qxF "$(normal <<< "${name%%-*}")" "$out/.there"; then
        continue
    elif [[ $name == vllm-* && ${#slim[@]} -gt 0 ]]; then
        "$python" "$here/slim.py" wheel "${slim[@]:1}" "$wheel" "$out" > /dev/null
    else
        cp "$wheel" "$out/"
    fi
done
rm "$out/.there"
cd "$out"
carried=(*.whl)
[ ${#carried[@]} -gt 0 ] || fail "$wheels holds no wheels: fill it with 'wheels.py fetch' first"
sha256sum "${carried[@]}" > SHA256SUMS
for wheel in "${carried[@]}"; do
    if [ "$(stat -c %s "$wheel")" -gt $((size << 20)) ]; then
        split --bytes="${size}M" --numeric-suffixes --suffix-length=2 "$wheel" "$wheel.part-"
        rm "$wheel"
    fi
done
du -ch --apparent-size -- * | tail -n 1
