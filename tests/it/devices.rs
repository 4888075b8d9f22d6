//! What can evaluate, and that a flag for what cannot does nothing.

use serde_json::Value;

use crate::make::Make;
use crate::util::Dir;

fn dir() -> Dir {
    Make::new("llama", 4).dir()
}

/// The first line in `/proc/meminfo`: bytes that the system has.
#[cfg(target_os = "linux")]
fn memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let words: Vec<&str> = text.split_whitespace().take(3).collect();
    assert_eq!((words[0], words[2]), ("MemTotal:", "kB"));
    words[1].parse::<u64>().unwrap() * 1024
}

#[test]
fn version_and_show_name_the_back_ends_and_their_devices() {
    let dir = dir();
    let version = dir.run("--version").succeeds();
    let devices: Vec<&str> = version.stdout.lines().skip(1).collect();
    let cpu = devices.iter().find(|line| line.starts_with("back end CPU"));
    version.check(
        cpu.is_some_and(|line| line.starts_with("back end CPU: CPU (") && line.ends_with(" GB)")),
        "the CPU among the back ends",
    );
    let shown = dir.run("show m.gguf").succeeds();
    let section: Vec<String> = devices.iter().map(|line| format!("  {line}\n")).collect();
    let section = format!("\n\ndevices\n{}", section.concat());
    shown.check(shown.stdout.ends_with(&section), &section);
    // What is compared between machines has none.
    let diffable = dir.run("show --diffable m.gguf").succeeds();
    diffable.check(!diffable.stdout.contains("back end"), "no devices");

    let json = dir.run("show m.gguf --json -").succeeds();
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    let all = json["back_ends"].as_array().unwrap();
    let cpu = all.iter().find(|one| one["name"] == "CPU").unwrap();
    let cpu = &cpu["devices"].as_array().unwrap()[0];
    assert_eq!((&cpu["name"], &cpu["kind"]), (&"CPU".into(), &"cpu".into()));
    assert!(!cpu["description"].as_str().unwrap().is_empty(), "{cpu}");
    #[cfg(target_os = "linux")]
    assert_eq!(cpu["memory_bytes"], memory());
}

#[cfg(not(any(feature = "cuda", feature = "vulkan", feature = "metal", feature = "rocm")))]
mod without_gpu {
    use super::dir;
    use crate::util::Output;

    const WHY: &str = "this build has no GPU back end (features cuda, vulkan, metal, rocm)";

    /// How often it is said, whatever else comes of the command: these models cannot be evaluated.
    fn check(output: &Output<'_>, said: Option<&str>) {
        let found: Vec<&str> = (output.stderr.lines()).filter(|line| line.contains("--gpu-layers")).collect();
        let said = said.map(|n| format!("gguf-shorten: warning: --gpu-layers {n} does nothing: {WHY}"));
        let expected: Vec<&str> = said.iter().map(String::as_str).collect();
        output.check(found == expected, &format!("{expected:?}"));
    }

    #[test]
    fn gpu_layers_are_said_to_do_nothing_once_in_every_command_that_has_them() {
        let dir = dir();
        for command in [
            "m.gguf --blocks 1 -o o.gguf --force",
            "m.gguf --drop 1 -o o.gguf --force",
            "m.gguf --drop 1 -o o.gguf --force --heal linear",
            "m.gguf --drop 1 -o o.gguf --force --method search",
            "score m.gguf",
            "score m.gguf --ablate",
            "eval m.gguf",
            "eval m.gguf --parent m.gguf",
            "compare m.gguf --drop 1",
            "batch m.gguf --drop 1 --out-dir out --redo",
        ] {
            let run = |flags: &str| dir.run(&format!("{command} {flags}")).output();
            check(&run("--gpu-layers 99"), Some("99"));
            check(&run("--ngl -1"), Some("-1"));
            for silent in ["", "--gpu-layers 0", "--gpu-layers 99 --quiet"] {
                check(&run(silent), None);
            }
        }
    }

    #[test]
    fn a_batch_says_so_once_for_all_its_models() {
        let dir = dir();
        for name in ["a.gguf", "b.gguf", "c.gguf"] {
            dir.write(name, &dir.read("m.gguf"));
        }
        let flags = "--drop 1 --method sequential --out-dir out --redo";
        let batch = format!("batch a.gguf b.gguf c.gguf {flags}");
        for verbose in ["", "--verbose"] {
            let output = dir.run(&format!("{batch} --gpu-layers 7 {verbose}")).output();
            output.check(output.status.success(), "success");
            check(&output, Some("7"));
        }
        dir.write("of-one.toml", b"['b.gguf']\ngpu-layers = 5\n");
        let output = dir.run(&format!("{batch} --config of-one.toml")).output();
        output.check(output.status.success(), "success");
        check(&output, Some("5"));
        let output = dir.run(&format!("{batch} --config of-one.toml --quiet")).output();
        check(&output, None);
    }

    /// Servers take blocks as GPUs do.
    #[cfg(feature = "rpc")]
    #[test]
    fn with_servers_rpc_and_gpu_layers_do_something() {
        let dir = dir();
        for command in ["score m.gguf", "batch m.gguf --drop 1 --out-dir out"] {
            let run = format!("{command} --gpu-layers 99 --rpc 127.0.0.1:1");
            check(&dir.run(&run).output(), None);
        }
    }
}
