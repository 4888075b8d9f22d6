"""Makes a tar.gz of what a wheel installs, and prints its path.

    python archive.py WHEEL
"""

import gzip
import io
import pathlib
import re
import sys
import tarfile
import zipfile


def place(name):
    """Where a file of the wheel lies in the archive; `None` for what only pip needs."""
    script = re.fullmatch(r"[^/]+\.data/scripts/(.+)", name)
    data = re.fullmatch(r"[^/]+\.data/data/(.+)", name)
    licence = re.fullmatch(r"[^/]+\.dist-info/licenses/(?:licences/)?(.+)", name)
    if script:
        return "bin/" + script[1]
    if data:
        return data[1]
    return "licences/" + licence[1] if licence else None


wheel = pathlib.Path(sys.argv[1])
# NAME-VERSION-py3-none-PLATFORM
name, version, _, _, platform = wheel.stem.split("-", 4)
machine = re.sub(r"manylinux(\d+|_\d+_\d+)_", "linux-", platform.split(".")[0])
top = f"{name.replace('_', '-')}-{version}-{machine}"
out = wheel.with_name(f"{top}.tar.gz")
with zipfile.ZipFile(wheel) as source, gzip.GzipFile(out, "wb", compresslevel=9, mtime=0) as packed:
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for entry in sorted(source.infolist(), key=lambda entry: entry.filename):
            to = place(entry.filename)
            if to is None or entry.is_dir():
                continue
            member = tarfile.TarInfo(f"{top}/{to}")
            member.size = entry.file_size
            member.mode = 0o755 if to.startswith("bin/") else 0o644
            archive.addfile(member, io.BytesIO(source.read(entry)))
print(out)
