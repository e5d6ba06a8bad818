"""Mutations of a checkpoint's files: random ones of bytes, and pointed ones of what the bytes mean."""

from __future__ import annotations

import json
import os
import pickletools
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from checkpoints import record_of, rezipped

_GIT_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 18724353\n"
_HTML = b"<!DOCTYPE html>\n<html><head><title>504 Gateway Time-out</title></head><body></body></html>\n"
_SPARSE_BYTES = 64 * 2**30
_SPARSE_WEIGHTS_BYTES = 2**30  # a file of weights may be as large as that, and is mapped whole
_RAW = "@raw@"

# Stand in JSON for what Python's json would not write.
_RAW_VALUES = [
    "1e400",
    "-1e400",
    "9" * 400,
    "9" * 10_000,
    "[" * 50_000,
    '{"a":' * 50_000,
    "NaN",
    "01",
    '"\\ud800"',
    '"',
]
_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 7, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 10**18,
    0.5, 1e-300, 1e308, -0.0, [], [[]], [1, 2], {}, {"": {}}, [None] * 1000,
    "", "x", "\ud800", "a\nb\x1b[31m", "../../etc/passwd", "/etc/passwd", "x" * 100_000,
]  # fmt: skip

_NESTED_KEY = b"}" + b")" + b"2\x86" * 60 + b"K\x01s0"  # a dict with a key that takes 2**60 steps to hash
_OPCODES = [
    _NESTED_KEY,
    b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R0",
    b"cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x01\x85R0",
    b"cbuiltins\neval\nX\x10\x00\x00\x00open('trap', 'w')\x85R0",
    b"cos\nsystem\nX\x0a\x00\x00\x00touch trap\x85R0",
    b"ctorch\nSize\n)R0",
    b"cinvented.module\nClass\n)\x81}b0",
    b"\x8a\xff" + b"\x7f" * 255,  # LONG1
    b"\x8b\xff\xff\xff\x7f",  # LONG4 of 2 GiB
    b"\x8d" + b"\xff" * 7 + b"\x7f",  # BINUNICODE8
    b"r\xff\xff\xff\x7f",  # LONG_BINPUT
    b"j\xff\xff\xff\x7f",  # LONG_BINGET
    b"(" * 1000,
    b"]" + b"2a" * 100,
    b"2" * 100_000,
    b"\x95" + b"\xff" * 8,  # FRAME
    b"0", b"1", b"2", b"t", b"s", b"u", b"a", b"e", b"b", b"R", b"\x81", b"\x92", b"Q", b"P1\n", b".", b"}",
    b"]", b"N", b"\x8f", b"\x90", b"\x93", b"\x82\x01", b"\x97", b"\x98", b"ibuiltins\neval\n", b"o",
]  # fmt: skip
_NAMES = [
    b"builtins\neval", b"os\nsystem", b"builtins\ngetattr", b"torch\nload", b"pathlib\nPosixPath",
    b"collections\nOrderedDict", b"argparse\nNamespace", b"torch\nFloatStorage", b"torch\nHalfStorage",
    b"torch._utils\n_rebuild_tensor_v2", b"torch._utils\n_rebuild_sparse_tensor",
    b"torch._utils\n_rebuild_parameter", b"numpy.core.multiarray\n_reconstruct",
    b"invented.module\nClass", b"\n", b"x" * 10_000 + b"\ny",
]  # fmt: skip


_TEMPLATES = [
    "{% for a in range(10**9) %}{% for b in range(10**9) %}x{% endfor %}{% endfor %}",
    "{{ 'a' * 10**10 }}", "{{ 9**9**9 }}", "{{ ('%' ~ 10**9 ~ 'd') % 1 }}", "{{ [[1] * 10**5] * 10**5 }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{% include '/etc/passwd' %}", "{{ x.y.z }}",
    "{{ messages.append(1) }}",
    "{% set x = namespace(v='a') %}{% for a in range(99) %}{% set x.v = x.v ~ x.v %}{% endfor %}{{ x.v }}",
    "{{ '\\ud800' }}", "{{ messages | map(attribute='role.__class__') | join }}", "{{ 1 / 0 }}",
    "{{ messages | tojson(indent=10**9) }}", "{{ 'a' | center(10**10) }}", "{{ lipsum(10**9) }}",
]  # fmt: skip


def mutate(root: Path, random: Random) -> str:
    """Change one thing in the checkpoint at ``root``; returns what was changed."""
    files = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
    file = random.choice(files)
    choices: list[Callable[[Path, Random], str]] = [_change_bytes]
    if file.suffix == ".json":
        choices = [_change_json] * 4 + [_change_bytes]
    elif file.suffix == ".safetensors":
        choices = [_change_safetensors] * 3 + [_change_bytes]
    elif file.suffix in (".pt", ".bin"):
        choices = [_change_pickle] * 5 + [_change_bytes] * 2
    elif file.suffix == ".jinja":
        choices = [_change_template, _change_bytes]
    elif file.suffix == ".tar":
        choices = [_change_tar, _change_bytes]
    change = _replace_file if random.random() < 0.1 else random.choice(choices)
    return f"{file.relative_to(root.parent)}: {change(file, random)}"


def _replace_file(file: Path, random: Random) -> str:
    """Something that is no such file stands in its place."""
    kind = random.choice(
        ["nothing", "FIFO", "/dev/zero", "directory", "dangling", "loop", "sparse", "LFS", "HTML", "empty"]
    )
    file.unlink()
    if kind == "FIFO":
        os.mkfifo(file)
    elif kind in ("/dev/zero", "dangling", "loop"):
        file.symlink_to({"/dev/zero": "/dev/zero", "dangling": "../../blobs/0123", "loop": file.name}[kind])
    elif kind == "directory":
        file.mkdir()
    elif kind == "sparse":
        with file.open("wb") as opened:
            opened.truncate(_SPARSE_WEIGHTS_BYTES if file.suffix == ".safetensors" else _SPARSE_BYTES)
    elif kind != "nothing":
        file.write_bytes({"LFS": _GIT_LFS, "HTML": _HTML, "empty": b""}[kind])
    return f"replaced by {kind}"


def _change_bytes(file: Path, random: Random) -> str:
    contents = bytearray(file.read_bytes())
    said = _mutate_bytes(contents, random)
    file.write_bytes(contents)
    return said


def _mutate_bytes(contents: bytearray, random: Random) -> str:
    at = _position(len(contents), random)
    length = min(random.choice([1, 1, 2, 4, 8, 64, 4096]), len(contents) - at)
    kind = random.choice(["flip", "set", "cut", "insert", "delete", "repeat", "swap"])
    if kind == "flip" and contents:
        contents[at] ^= 1 << random.randrange(8)
    elif kind == "set":
        contents[at : at + length] = (
            bytes([random.choice([0, 0xFF, 0x7F, 0x80, random.randrange(256)])]) * length
        )
    elif kind == "cut":
        del contents[at:]
    elif kind == "insert":
        contents[at:at] = random.randbytes(length)
    elif kind == "delete":
        del contents[at : at + length]
    elif kind == "repeat":
        contents[at:at] = contents[at : at + length] * random.choice([1, 2, 100])
    else:
        other = _position(len(contents), random)
        one, two = contents[at : at + length], contents[other : other + length]
        contents[at : at + len(two)], contents[other : other + len(one)] = two, one
    return f"{kind} {length} bytes at {at}"


def _position(size: int, random: Random) -> int:
    """Often near an end, where headers and directories are."""
    near = random.choice([64, 512, 8192])
    where = random.random()
    if where < 0.4:
        return random.randrange(max(1, min(near, size)))
    return max(0, size - 1 - random.randrange(near)) if where < 0.7 else random.randrange(max(1, size))


def _change_json(file: Path, random: Random) -> str:
    values = json.loads(file.read_text(encoding="utf-8"))
    text, said = _mutate_json(values, random)
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    return said


def _mutate_json(values: Any, random: Random) -> tuple[str, str]:
    """The text of ``values`` with one of them, at any depth, changed, dropped, renamed or added."""
    holder, key = None, None
    inside: Any = values
    while isinstance(inside, (dict, list)) and inside and (holder is None or random.random() < 0.8):
        holder = inside
        key = random.choice(list(inside)) if isinstance(inside, dict) else random.randrange(len(inside))
        inside = inside[key]
    raw = random.choice(_RAW_VALUES)
    value = random.choice([*_VALUES, _RAW, _RAW, _RAW])
    kind = random.choice(["change", "change", "change", "drop", "rename", "add"])
    if holder is None:
        values = value
    elif kind == "drop":
        del holder[key]
    elif kind == "rename" and isinstance(holder, dict):
        holder[random.choice([f"{key}x", "", "a\nb", "__metadata__"])] = holder.pop(key)
    elif kind == "add" and isinstance(holder, dict):
        holder[random.choice(["eos_token_id", "chat_template", "torch_dtype", "rope_scaling", "x"])] = value
    else:
        holder[key] = value
    return json.dumps(values).replace(
        f'"{_RAW}"', raw
    ), f"{kind} {str(key)[:80]!r}: {(raw if value == _RAW else value)!r:.60}"


def _change_safetensors(file: Path, random: Random) -> str:
    """Its header, with a length that fits it most of the time."""
    contents = file.read_bytes()
    length = int.from_bytes(contents[:8], "little")
    text, said = _mutate_json(json.loads(contents[8 : 8 + length]), random)
    header = text.encode("utf-8", "surrogatepass")
    stated = random.choice([len(header)] * 8 + [0, len(header) - 1, 2**63, 2**64 - 1])
    file.write_bytes(stated.to_bytes(8, "little") + header + contents[8 + length :])
    return f"header: {said}"


def _change_template(file: Path, random: Random) -> str:
    """A statement that takes for ever, or reaches out of the template, at one of its places."""
    text, statement = file.read_text(encoding="utf-8"), random.choice(_TEMPLATES)
    at = random.choice([0, len(text), text.index("{% endfor")])
    file.write_text(text[:at] + statement + text[at:], encoding="utf-8")
    return f"{statement} at {at}"


def _change_tar(file: Path, random: Random) -> str:
    """A field of one of its headers, with a checksum that is right."""
    contents = bytearray(file.read_bytes())
    headers = [at for at in range(0, len(contents) - 511, 512) if contents[at + 257 : at + 262] == b"ustar"]
    at = random.choice(headers)
    start, length = random.choice([(0, 100), (100, 8), (124, 12), (156, 1), (157, 100), (345, 155)])
    field = random.choice(
        [b"\0", b"7", b"9", b"\xff", b"../../x\0", b"/\0", b"L", b"x", b"g", b"S", b"1", b"2", b"K"]
    )
    contents[at + start : at + start + length] = (
        (field * length)[:length] if random.random() < 0.5 else field.ljust(length, b"\0")[:length]
    )
    contents[at + 148 : at + 156] = b" " * 8
    contents[at + 148 : at + 156] = b"%06o\0 " % sum(contents[at : at + 512])
    file.write_bytes(contents)
    return f"header at {at}: {length} bytes from {start} are {field!r}"


def _change_pickle(file: Path, random: Random) -> str:
    """The program in a file of torch.save; the checksum of its record is right."""
    contents = file.read_bytes()
    pickled = record_of(contents, "data.pkl")
    ends = [at for _, _, at in pickletools.genops(pickled) if at is not None]
    first, second = sorted(random.sample(ends, 2))
    kind = random.choice(["insert", "insert", "insert", "delete", "double", "global", "bytes"])
    if kind == "insert":
        opcodes = random.choice(_OPCODES)
        pickled = pickled[:first] + opcodes + pickled[first:]
        said = f"{opcodes!r:.60} at {first}"
    elif kind == "delete":
        pickled, said = pickled[:first] + pickled[second:], f"{first} to {second}"
    elif kind == "double":
        pickled, said = (
            pickled[:second] + pickled[first:second] * 2 + pickled[second:],
            f"{first} to {second}",
        )
    elif kind == "global":
        found = random.choice(list(re.finditer(rb"c([\w.]+\n[\w.]+)\n", pickled)))
        name = random.choice(_NAMES)
        pickled = pickled[: found.start(1)] + name + pickled[found.end(1) :]
        said = f"{found[1]!r} is {name!r:.60}"
    else:
        mutable = bytearray(pickled)
        said = _mutate_bytes(mutable, random)
        pickled = bytes(mutable)
    file.write_bytes(rezipped(contents, {"data.pkl": pickled}))
    return f"pickle: {kind} {said}"


def copied(source: Path, destination: Path) -> Path:
    """A copy of a checkpoint, file or directory, in the directory ``destination``."""
    target = destination / source.name
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)
    return target
