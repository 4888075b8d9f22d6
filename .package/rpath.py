"""Lets the files of a wheel look for libraries beside themselves first.

    python rpath.py WHEEL

zig's linker writes a runpath whatever it is told, and LD_LIBRARY_PATH comes before that: another llama.cpp would be loaded. An rpath
comes first. Both are one number of the same entry.
"""

import base64
import csv
import hashlib
import io
import pathlib
import struct
import sys
import zipfile

PT_DYNAMIC = 2
DT_NULL, DT_RPATH, DT_RUNPATH = 0, 15, 29


def with_rpath(file):
    """A 64-bit little-endian ELF file whose runpaths are rpaths."""
    file = bytearray(file)
    (headers,) = struct.unpack_from("<Q", file, 32)
    size, n = struct.unpack_from("<HH", file, 54)
    for i in range(n):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", file, headers + i * size)
        if kind != PT_DYNAMIC:
            continue
        for entry in range(offset, offset + length, 16):
            (tag,) = struct.unpack_from("<q", file, entry)
            if tag == DT_NULL:
                break
            if tag == DT_RUNPATH:
                struct.pack_into("<q", file, entry, DT_RPATH)
    return bytes(file)


def record(files, name):
    """The list of a wheel's files, with their hashes."""
    lines = io.StringIO()
    out = csv.writer(lines, lineterminator="\n")
    for file, content in files:
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        out.writerow([file, f"sha256={digest}", len(content)])
    out.writerow([name, "", ""])
    return lines.getvalue().encode()


wheel = pathlib.Path(sys.argv[1])
with zipfile.ZipFile(wheel) as source:
    entries = source.infolist()
    contents = {entry.filename: source.read(entry) for entry in entries}
(list_name,) = [name for name in contents if name.endswith(".dist-info/RECORD")]
for name, content in contents.items():
    if content.startswith(b"\x7fELF\x02\x01"):
        contents[name] = with_rpath(content)
contents[list_name] = record([(name, contents[name]) for name in contents if name != list_name], list_name)
made = wheel.with_suffix(".part")
with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as out:
    for entry in entries:
        # Its time and mode stay.
        out.writestr(entry, contents[entry.filename], zipfile.ZIP_DEFLATED, compresslevel=9)
made.replace(wheel)
