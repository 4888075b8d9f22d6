//! Puts the versions into `--version` and compresses the built-in calibration text. Never downloads, never runs git.

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::{env, fs};

use flate2::Compression;
use flate2::write::DeflateEncoder;

/// The text that blocks are scored on where the user gives none.
const CALIBRATION: &str = "testdata/calibration.txt";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={CALIBRATION}");
    println!("cargo::rerun-if-changed=Cargo.lock");
    let out = env::var("OUT_DIR")?;
    let text = fs::read(CALIBRATION)?;
    let file = fs::File::create(Path::new(&out).join("calibration.txt.deflate"))?;
    let mut encoder = DeflateEncoder::new(file, Compression::best());
    encoder.write_all(&text)?;
    encoder.finish()?;

    let mut version = env::var("CARGO_PKG_VERSION")?;
    if let Some(revision) = git_revision(Path::new(".git")) {
        version += &format!(" ({revision})");
    }
    println!("cargo::rustc-env=GGUF_SHORTEN_VERSION={version}");
    if env::var_os("CARGO_FEATURE_PORTABLE").is_some() && env::var("CARGO_CFG_TARGET_OS")? == "linux" {
        // Where llama.cpp is. An rpath comes before LD_LIBRARY_PATH; zig makes a runpath of it, see .package/rpath.py.
        println!("cargo::rustc-link-arg-bins=-Wl,--disable-new-dtags,-rpath,$ORIGIN/../lib/gguf-shorten");
    }
    Ok(())
}

/// The first 12 digits of the checked-out commit, read from git's files. `None` outside of a checkout.
fn git_revision(git: &Path) -> Option<String> {
    let head = read_watched(&git.join("HEAD"))?;
    let commit = match head.strip_prefix("ref: ") {
        None => head,
        Some(name) => {
            let name = name.trim();
            read_watched(&git.join(name)).or_else(|| {
                let packed = read_watched(&git.join("packed-refs"))?;
                let line = packed.lines().find(|line| line.ends_with(&format!(" {name}")))?;
                Some(line.to_owned())
            })?
        }
    };
    commit.get(..12).map(str::to_owned)
}

/// A file whose changes build anew. One that is not there is not named: cargo would build anew each time.
fn read_watched(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    println!("cargo::rerun-if-changed={}", path.display());
    Some(text)
}
