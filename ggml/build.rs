//! Compiles ggml's RPC back end where feature `rpc` asks for it. The bindings build llama.cpp without it, unless the environment
//! says otherwise (`GGML_RPC`), but carry its two source files. Never downloads what is not a dependency already.

#[cfg(not(feature = "rpc"))]
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}

#[cfg(feature = "rpc")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    let ggml = sources()?.join("llama.cpp").join("ggml");
    let rpc = ggml.join("src").join("ggml-rpc");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .include(ggml.join("include"))
        .include(ggml.join("src"))
        .files(["ggml-rpc.cpp", "transport.cpp"].map(|name| rpc.join(name)))
        .warnings(false)
        // As CMake has it for everything else.
        .define("NDEBUG", None)
        .compile("gguf-shorten-ggml-rpc");
    if std::env::var("CARGO_CFG_TARGET_OS")? == "windows" {
        println!("cargo::rustc-link-lib=ws2_32");
    }
    Ok(())
}

/// The folder of the bindings, as cargo has unpacked them. They do not say where it is, so cargo is asked.
#[cfg(feature = "rpc")]
fn sources() -> Result<std::path::PathBuf, Box<dyn std::error::Error>> {
    use std::env::var;
    use std::process::Command;
    const BINDINGS: &str = "llama-cpp-sys-2";
    let metadata = |more: &[&str]| -> Result<Vec<u8>, Box<dyn std::error::Error>> {
        let output = Command::new(var("CARGO")?)
            .args(["metadata", "--format-version=1", "--filter-platform"])
            .arg(var("TARGET")?)
            .args(more)
            .current_dir(var("CARGO_MANIFEST_DIR")?)
            .output()?;
        match output.status.success() {
            true => Ok(output.stdout),
            false => Err(String::from_utf8_lossy(&output.stderr).into()),
        }
    };
    // What only tests need may not be here yet.
    let found = metadata(&["--offline"]).or_else(|_| metadata(&[]))?;
    let found: serde_json::Value = serde_json::from_slice(&found)?;
    let packages = found["packages"].as_array().ok_or("cargo lists no packages")?;
    let manifest = packages
        .iter()
        .find(|package| package["name"] == BINDINGS)
        .and_then(|package| package["manifest_path"].as_str())
        .ok_or_else(|| format!("cargo does not know where {BINDINGS} is"))?;
    let folder = std::path::Path::new(manifest).parent();
    Ok(folder.ok_or("a manifest in no folder")?.to_owned())
}
