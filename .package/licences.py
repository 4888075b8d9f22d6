"""Collects the licences of everything that is compiled into a package into one file.

    python licences.py OUT

Started in the top folder of the project, with the Python in which zig is installed.
"""

import importlib.util
import json
import pathlib
import re
import subprocess
import sys

TRIPLE = "x86_64-unknown-linux-gnu"
# Files of a crate that are licences or tell of them.
NAME = re.compile(r"(licen[cs]e|copying|notice|unlicense|copyright)", re.IGNORECASE)


def crates():
    """The crates that are linked, our own left out: name with version, licence, folder, source."""
    command = ["cargo", "metadata", "--format-version=1", "--locked", "--features=portable,rpc", f"--filter-platform={TRIPLE}"]
    metadata = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    found, queue = set(), [metadata["resolve"]["root"]]
    while queue:
        crate = queue.pop()
        if crate in found or any("proc-macro" in target["kind"] for target in packages[crate]["targets"]):
            continue
        found.add(crate)
        for dependency in nodes[crate]["deps"]:
            if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                queue.append(dependency["pkg"])
    linked = [packages[crate] for crate in found if packages[crate]["source"]]
    return sorted(linked, key=lambda package: (package["name"], package["version"]))


def texts_of(folder):
    """The licence files of a folder, and of those in it that are named after licences."""
    places = [folder, *(entry for entry in folder.iterdir() if entry.is_dir() and NAME.match(entry.name))]
    files = (file for place in places for file in sorted(place.iterdir()))
    # Sources can have such names too.
    wanted = (file for file in files if file.is_file() and NAME.search(file.name) and file.suffix not in (".rs", ".py", ".toml"))
    return [file.read_text(encoding="utf8", errors="replace").strip() for file in wanted]


def comment_before(file, word):
    """The comment at the beginning of a source file, which holds its licence."""
    head = []
    for line in file.read_text(encoding="utf8").splitlines():
        if not line.startswith("//"):
            break
        head.append(line[2:].strip())
    text = "\n".join(head).strip()
    if word not in text:
        sys.exit(f"licences: {file} does not begin with a licence")
    return text


def beside_crates(packages):
    """What is linked and is no crate: a name with its licence texts."""
    (bindings,) = [package for package in packages if package["name"] == "llama-cpp-sys-2"]
    llama = pathlib.Path(bindings["manifest_path"]).parent / "llama.cpp"
    yield "llama.cpp and ggml", "MIT", texts_of(llama)
    sgemm = llama / "ggml/src/ggml-cpu/llamafile/sgemm.cpp"
    yield "llamafile: sgemm.cpp in ggml", "MIT", [comment_before(sgemm, "Permission is hereby granted")]
    zig = pathlib.Path(importlib.util.find_spec("ziglang").origin).parent
    for name in ["libcxx", "libcxxabi", "libunwind"]:
        yield f"LLVM {name}", "Apache-2.0 WITH LLVM-exception", texts_of(zig / "lib" / name)
    yield "zig: compiler_rt", "MIT", texts_of(zig) or texts_of(zig.parent)
    rust = subprocess.run(["rustc", "--print=sysroot"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    # Those of all of Rust's tools lie there too, in pages of many megabytes.
    rust = pathlib.Path(rust) / "share/doc/rust/licenses"
    if not rust.is_dir():
        sys.exit(f"licences: no folder {rust}, which comes with Rust's documentation (rustup component add rust-docs)")
    texts = [(rust / f"{name}.txt").read_text(encoding="utf8").strip() for name in ["MIT", "Apache-2.0"]]
    yield "Rust standard library", "MIT OR Apache-2.0", texts


def text_of(license, authors):
    """The text of a licence for a crate that brings none."""
    if "MIT" not in license:
        sys.exit(f"licences: a crate brings no text of {license}")
    words = (pathlib.Path("LICENSE").read_text(encoding="utf8")).partition("Permission is hereby granted")
    return f"MIT License\n\nCopyright (c) {authors or 'its authors'}\n\n{words[1]}{words[2]}".strip()


def main():
    packages = crates()
    entries = list(beside_crates(packages))
    for package in packages:
        license = package["license"] or "see the text"
        name = f"{package['name']} {package['version']} ({package['repository'] or 'crates.io'})"
        authors = ", ".join(package["authors"])
        name += f", {authors}" if authors else ""
        texts = texts_of(pathlib.Path(package["manifest_path"]).parent) or [text_of(license, authors)]
        entries.append((name, license, texts))
    by_text = {}
    for name, license, texts in entries:
        for text in texts:
            by_text.setdefault(re.sub(r"\s+", " ", text), (text, []))[1].append(name)
    out = ["Programs and libraries that are part of this package, and their licences.", ""]
    out += [f"{name}: {license}" for name, license, _ in entries]
    for text, names in by_text.values():
        out += ["", "=" * 100, "", *names, "", text]
    pathlib.Path(sys.argv[1]).write_text("\n".join(out) + "\n", encoding="utf8")
    print(f"licences: {len(entries)} parts, {len(by_text)} texts", file=sys.stderr)


main()
