#!/usr/bin/env bash
# install.sh WHEELS_DIR: installs vLLM 0.26.0 and this project from wheels, without a network, beside the torch that the
# machine has. README.md has the whole way.
#   PYTHON           the Python that has torch (python3)
#   HGUARD_KIT_VENV  the environment to make, over an older one of that name (.venv-gpu in the repository)
#   HGUARD_KIT_STRIP 1 deletes from the installed vLLM what a bf16 text model on an H100 or H200 does not load
set -euo pipefail

fail() {
    echo "install.sh: $1" >&2
    exit 1
}

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-python3}
venv=${HGUARD_KIT_VENV:-$root/.venv-gpu}
[ $# -eq 1 ] || fail "give one folder of wheels: install.sh WHEELS_DIR"
[ -d "$1" ] || fail "$1 is no folder: give the one that 'wheels.py fetch' or pack.sh filled"
wheels=$(cd "$1" && pwd)

found=$("$python" -c 'import sys, torch; print(sys.version_info[:2] == (3, 12), torch.__version__)') ||
    fail "$python does not import torch: name the Python 3.12 that has torch 2.11.0+cu130 in PYTHON"
[ "$found" = "True 2.11.0+cu130" ] ||
    fail "the wheels fit Python 3.12 with torch 2.11.0+cu130, and $python has torch ${found#* } under $("$python" -V)"

# Whole wheels are linked into one folder and cut ones joined there, so WHEELS_DIR itself stays as it is.
whole=$(mktemp -d)
trap 'rm -rf "$whole"' EXIT
shopt -s nullglob
for wheel in "$wheels"/*.whl; do
    ln -s "$wheel" "$whole/"
done
for first in "$wheels"/*.whl.part-00; do
    name=$(basename "$first" .part-00)
    cat "$wheels/$name".part-* > "$whole/$name"
done
if [ -f "$wheels/SHA256SUMS" ]; then
    (cd "$whole" && sha256sum --check --quiet "$wheels/SHA256SUMS") ||
        fail "a wheel or a piece of one is missing or damaged in $wheels: carry over again what is named above"
fi
engine=("$whole"/vllm-0.26.0-*.whl)
[ ${#engine[@]} -eq 1 ] || fail "$wheels must hold exactly one wheel of vLLM 0.26.0, whole or in pieces, not ${#engine[@]}"
rest=()
for wheel in "$whole"/*.whl; do
    [ "$wheel" = "${engine[0]}" ] || rest+=("$wheel")
done

# The environment has no pip of its own: a Python without ensurepip, as Debian's, can make it, and the machine's pip serves
# it. --system-site-packages alone would miss torch where the machine's Python is itself a virtual environment, so a .pth
# file names its folders. FlashInfer is not among the wheels, and vLLM's sampler asks for it unless told not to.
[ ! -e "$venv" ] || [ -f "$venv/pyvenv.cfg" ] || fail "$venv is there and no environment: name another HGUARD_KIT_VENV"
rm -rf "$venv"
"$python" -m venv --without-pip --system-site-packages "$venv"
echo '*' > "$venv/.gitignore"
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$python" - > "$site/hguard_gpu_kit.pth" <<'END'
import sys
for path in sys.path:
    if path.endswith(("site-packages", "dist-packages")):
        print(f"import site; site.addsitedir({path!r})")
print("import os; os.environ.setdefault('VLLM_USE_FLASHINFER_SAMPLER', '0')")
END
pip() {
    "$python" -m pip --python "$venv/bin/python" --disable-pip-version-check install --quiet --no-index --no-deps "$@"
}
# --ignore-installed: what the kit brings goes into the environment, whatever version the machine has.
pip --no-compile --ignore-installed "${engine[0]}"
[ ${#rest[@]} -eq 0 ] || pip --no-compile --ignore-installed "${rest[@]}"
[ "${HGUARD_KIT_STRIP:-0}" != 1 ] || "$venv/bin/python" "$here/slim.py" installed "$site"
"$venv/bin/python" "$here/wheels.py" present
pip --no-build-isolation --editable "$root"
"$venv/bin/python" "$here/wheels.py" check
echo "installed into $venv"
