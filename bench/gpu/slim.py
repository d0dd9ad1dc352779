"""Cuts vLLM 0.26.0 down to what a bf16 dense text model on an H100 or H200 loads.

`wheel` writes a smaller wheel, to be carried in place of the whole one; `installed` deletes the same files from an
installed vLLM. `wheel --only-sm90` also takes the machine code for other GPUs out of the extensions that stay: each fat
binary then holds what a build for that GPU alone would hold.
"""

import argparse
import base64
import csv
import hashlib
import io
import shutil
import struct
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

VERSION = "0.26.0"
# What goes, and why nothing misses it: a text model with grouped-query attention in bf16 or fp32 calls none of it, and
# vLLM guards the import or makes it on demand. A name that ends in / is a folder.
UNNEEDED = (
    "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so",  # compute capability 9 takes FlashAttention 3; guarded
    "vllm/_moe_C_stable_libtorch.abi3.so",  # mixtures of experts; guarded
    "vllm/vllm-rs",  # the front end in Rust, off unless asked for
    "vllm/_rust_tool_parser.abi3.so",  # a tool parser in Rust; on demand
    "vllm/_flashmla_C.abi3.so",  # multi-head latent attention; guarded
    "vllm/_flashmla_extension_C.abi3.so",  # the same
    "vllm/_qutlass_C.abi3.so",  # 4-bit floats on Blackwell; guarded
    "vllm/third_party/deep_gemm/",  # matrix products in fp8; looked for before use
    "vllm/third_party/fmha_sm100/",  # attention on Blackwell; on demand
)
SM = 90
FATBIN = 0xBA55ED50  # the magic number before each group of builds of one source file
PTX, CUBIN = 1, 2


class SlimError(Exception):
    """The wheel is not the one that this list was made for; the text says what to do."""


class Entry(NamedTuple):
    """One build for one GPU architecture, a self-contained stretch of a fat binary."""

    kind: int
    arch: int
    start: int
    size: int


class Fatbin(NamedTuple):
    """The builds of one source file, behind a header that gives their length."""

    header: int
    start: int
    size: int
    entries: list[Entry]


def unneeded(name: str) -> bool:
    """Whether a file of the wheel goes."""
    return any(name.startswith(drop) if drop.endswith("/") else name == drop for drop in UNNEEDED)


def section(elf: bytes, wanted: bytes) -> tuple[int, int]:
    """Offset and size of an ELF section; (0, 0) where there is none."""
    headers, step, count, names = *struct.unpack_from("<Q", elf, 0x28), *struct.unpack_from("<HHH", elf, 0x3A)
    where = [struct.unpack_from("<I20xQQ", elf, headers + step * i) for i in range(count)]
    for name, offset, size in where:
        start = where[names][1] + name
        if elf[start : elf.index(b"\0", start)] == wanted:
            return offset, size
    return 0, 0


def fatbins(elf: bytes) -> Iterator[Fatbin]:
    """The fat binaries of an extension."""
    at, size = section(elf, b".nv_fatbin")
    end = at + size
    while at < end:
        magic, _, length_of_header, length = struct.unpack_from("<IHHQ", elf, at)
        if magic != FATBIN:
            at += 8  # they start at multiples of 8
            continue
        fatbin = Fatbin(at, at + length_of_header, length, [])
        at = fatbin.start
        while at < fatbin.start + fatbin.size:
            kind, _, length_of_header, length = struct.unpack_from("<HHIQ", elf, at)
            (arch,) = struct.unpack_from("<I", elf, at + 28)
            fatbin.entries.append(Entry(kind, arch, at, length_of_header + length))
            at += fatbin.entries[-1].size
        yield fatbin


def pruned(elf: bytes, name: str) -> bytes:
    """An extension of the same layout, without the code that the driver of an SM GPU would not choose.

    It chooses a cubin for SM, or else translates the newest PTX that is not newer than SM. A fat binary that has
    neither keeps its smallest entry, since one without any is not well formed.
    """
    out, cubins = bytearray(elf), 0
    for fatbin in fatbins(elf):
        keep = [entry for entry in fatbin.entries if entry.kind == CUBIN and entry.arch == SM]
        cubins += len(keep)
        if not keep:
            keep = sorted((e for e in fatbin.entries if e.kind == PTX and e.arch <= SM), key=lambda e: e.arch)[-1:]
        if not keep:
            keep = sorted(fatbin.entries, key=lambda e: e.size)[:1]
        code = b"".join(elf[entry.start : entry.start + entry.size] for entry in keep)
        struct.pack_into("<Q", out, fatbin.header + 8, len(code))
        out[fatbin.start : fatbin.start + fatbin.size] = code.ljust(fatbin.size, b"\0")
    if not cubins:
        raise SlimError(f"{name} holds no code for sm_{SM}, so --only-sm90 would leave none: slim without it")
    return bytes(out)


def record_of(data: bytes) -> list[str]:
    """Hash and size, as RECORD has them."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return [f"sha256={digest}", str(len(data))]


def slim_wheel(wheel: Path, folder: Path, only_sm90: bool) -> Path:
    """Write the smaller wheel, of the same version under a build tag of its own; returns its path."""
    build = f"0sm{SM}" if only_sm90 else "0slim"
    name, version, *tags = wheel.name.split("-")
    if (name, version) != ("vllm", VERSION) or len(tags) != 3:
        raise SlimError(f"{wheel.name} is not vLLM {VERSION} as published, for which alone this list was made")
    info = f"vllm-{VERSION}.dist-info"
    out = folder / "-".join([name, version, build, *tags])
    # LZMA, which pip reads as well: a third of deflate's size for FlashAttention 3, and a minute's work.
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_LZMA) as target:
        names = source.namelist()
        absent = [drop for drop in UNNEEDED if not any(name.startswith(drop) for name in names)]
        if absent:
            raise SlimError(f"{wheel.name} has no {', '.join(absent)}: is it vLLM {VERSION} for CUDA, as published?")
        record = {row[0]: row[1:] for row in csv.reader(io.StringIO(source.read(f"{info}/RECORD").decode()))}
        for item in source.infolist():
            if item.is_dir() or item.filename == f"{info}/RECORD":
                continue
            if unneeded(item.filename):
                del record[item.filename]
                continue
            data = source.read(item)
            if item.filename == f"{info}/WHEEL":
                data = data.rstrip() + f"\nBuild: {build}\n\n".encode()
            elif only_sm90 and item.filename.endswith(".so") and section(data, b".nv_fatbin")[1]:
                data = pruned(data, item.filename)
            record[item.filename] = record_of(data)
            item.compress_type = zipfile.ZIP_LZMA
            target.writestr(item, data)
        rows = io.StringIO()
        csv.writer(rows, lineterminator="\n").writerows([name, *rest] for name, rest in record.items())
        target.writestr(f"{info}/RECORD", rows.getvalue())
    return out


def slim_installed(site: Path) -> int:
    """Delete the same files from an installed vLLM, with their lines of RECORD; returns the bytes freed."""
    record = site / f"vllm-{VERSION}.dist-info" / "RECORD"
    if not record.is_file():
        raise SlimError(f"{site} holds no vLLM {VERSION}: give the site-packages folder that install.sh filled")
    freed, kept = 0, []
    for line in record.read_text().splitlines(keepends=True):
        name = next(csv.reader([line]))[0]
        if not unneeded(name):
            kept.append(line)
        elif (site / name).is_file():
            freed += (site / name).stat().st_size
            (site / name).unlink()
    for drop in UNNEEDED:
        if drop.endswith("/"):
            shutil.rmtree(site / drop, ignore_errors=True)
    record.write_text("".join(kept))
    return freed


def main() -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    wheel = commands.add_parser("wheel", help="write a smaller wheel into a folder and print its name")
    wheel.add_argument("wheel", type=Path)
    wheel.add_argument("folder", type=Path, metavar="DIR")
    wheel.add_argument("--only-sm90", action="store_true", help="take out machine code for other GPUs as well")
    installed = commands.add_parser("installed", help="delete what is not needed from an installed vLLM")
    installed.add_argument("site", type=Path, metavar="SITE_PACKAGES")
    arguments = parser.parse_args()
    try:
        if arguments.command == "wheel":
            print(slim_wheel(arguments.wheel, arguments.folder, arguments.only_sm90))
        else:
            print(f"vLLM is {slim_installed(arguments.site) / 1e6:.0f} MB smaller")
    except SlimError as error:
        print(f"slim.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
