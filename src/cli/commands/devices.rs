//! What can evaluate here: the back ends of llama.cpp and their devices.

use std::fmt::Write as _;

use ggml::Backend;
use ggml::backend::{BackEnd, DeviceKind};
use indicatif::DecimalBytes;
use serde::Serialize;

use crate::cli::commands::escaped::Escaped;
use crate::cli::options::Printing;
use crate::cli::progress::is_child;
use crate::engine::settings::Calibration;
use crate::watch::Watch;

/// Says that `--gpu-layers` does nothing, where it does not.
pub(crate) fn warn(options: &Calibration, printing: &Printing) {
    note_threads(options.threads, printing);
    // Servers take blocks as GPUs do. For its children a batch says it.
    if options.rpc.is_empty() && !is_child() {
        warn_of(options.gpu_layers, printing);
    }
}

/// Notes more threads than processors, which wait for one another.
pub(crate) fn note_threads(n: usize, printing: &Printing) {
    let n_processors = num_cpus::get();
    if n > n_processors && !is_child() {
        printing.note(&format!(
            "--threads {n} is more than the {n_processors} processors that this process may use, which is very slow"
        ));
    }
}

/// As [`warn`], for a number of layers that stay on this machine.
pub(crate) fn warn_of(gpu_layers: Option<i32>, printing: &Printing) {
    let Some(n) = gpu_layers.filter(|&n| n != 0 && !printing.quiet) else {
        return;
    };
    if let Some(why) = without_gpu(&Backend::init().back_ends()) {
        eprintln!("gguf-shorten: warning: --gpu-layers {n} does nothing: {why}");
    }
}

/// Why nothing can go to a GPU; `None` if there is one.
fn without_gpu(back_ends: &[BackEnd]) -> Option<String> {
    let mut devices = back_ends.iter().flat_map(|one| &one.devices);
    if devices.any(|device| device.kind == DeviceKind::Gpu) {
        return None;
    }
    let idle: Vec<&str> =
        back_ends.iter().filter(|one| one.devices.is_empty()).map(|one| &*one.name).collect();
    Some(match &idle[..] {
        [] => "this build has no GPU back end (features cuda, vulkan, metal, rocm)".to_owned(),
        names => format!("no device was found (back ends: {})", names.join(", ")),
    })
}

/// The lines that tell of all.
pub(crate) fn lines() -> String {
    let backend = Backend::init();
    let mut text = of(&backend.back_ends());
    if let Some(file) = backend.kernels_file() {
        let _ = writeln!(text, "kernels {}", Escaped(&file.display().to_string()));
    }
    text
}

fn of(back_ends: &[BackEnd]) -> String {
    let mut text = String::new();
    for one in back_ends {
        let name = Escaped(&one.name);
        if one.devices.is_empty() {
            let _ = writeln!(text, "back end {name}: no device");
        }
        for device in &one.devices {
            let _ = write!(
                text,
                "back end {name}: {} ({}",
                Escaped(&device.name),
                Escaped(device.description.trim())
            );
            text.push_str(&match device.memory {
                0 => ")\n".to_owned(),
                n => format!(", {})\n", DecimalBytes(n)),
            });
        }
    }
    text
}

/// A back end, for JSON.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct BackEndReport {
    name: String,
    devices: Vec<DeviceReport>,
}

/// A device, for JSON.
#[derive(Debug, PartialEq, Serialize)]
struct DeviceReport {
    name: String,
    description: String,
    kind: &'static str,
    /// Null where it does not say.
    memory_bytes: Option<u64>,
}

/// All, for JSON.
pub(crate) fn report() -> Vec<BackEndReport> {
    let back_ends = Backend::init().back_ends().into_iter();
    back_ends
        .map(|one| BackEndReport {
            name: one.name,
            devices: one
                .devices
                .into_iter()
                .map(|device| DeviceReport {
                    name: device.name,
                    description: device.description,
                    kind: match device.kind {
                        DeviceKind::Cpu => "cpu",
                        DeviceKind::Gpu => "gpu",
                        DeviceKind::Accelerator => "accelerator",
                    },
                    memory_bytes: Some(device.memory).filter(|&n| n > 0),
                })
                .collect(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use ggml::backend::Device;

    use super::*;

    fn back_end(name: &str, kind: DeviceKind, devices: &[&str]) -> BackEnd {
        let device = |name: &&str| Device {
            name: (*name).to_owned(),
            description: "A maker's\nname ".to_owned(),
            kind,
            memory: 8_000_000_000,
        };
        BackEnd { name: name.to_owned(), devices: devices.iter().map(device).collect() }
    }

    #[test]
    fn why_nothing_goes_to_a_gpu_is_said() {
        let cpu = || back_end("CPU", DeviceKind::Cpu, &["CPU"]);
        let blas = || back_end("BLAS", DeviceKind::Accelerator, &["BLAS"]);
        let cuda = |devices: &[&str]| back_end("CUDA", DeviceKind::Gpu, devices);
        let vulkan = |devices: &[&str]| back_end("Vulkan", DeviceKind::Gpu, devices);
        let none = "this build has no GPU back end (features cuda, vulkan, metal, rocm)";
        for (back_ends, why) in [
            (vec![cpu()], Some(none)),
            (vec![blas(), cpu()], Some(none)),
            (vec![cuda(&[]), cpu()], Some("no device was found (back ends: CUDA)")),
            (
                vec![cuda(&[]), blas(), cpu(), vulkan(&[])],
                Some("no device was found (back ends: CUDA, Vulkan)"),
            ),
            (vec![cuda(&["CUDA0"]), cpu()], None),
            (vec![cuda(&[]), vulkan(&["Vulkan0"]), cpu()], None),
        ] {
            assert_eq!(without_gpu(&back_ends).as_deref(), why, "{back_ends:?}");
        }
    }

    #[test]
    fn every_device_has_a_line_and_so_has_a_back_end_without() {
        let mut cpu = back_end("CPU", DeviceKind::Cpu, &["CPU"]);
        cpu.devices[0].memory = 0;
        let cuda = back_end("CUDA", DeviceKind::Gpu, &["CUDA0", "CUDA1"]);
        assert_eq!(
            of(&[cuda, back_end("Vulkan", DeviceKind::Gpu, &[]), cpu]),
            "back end CUDA: CUDA0 (A maker's\\nname, 8.00 GB)\n\
             back end CUDA: CUDA1 (A maker's\\nname, 8.00 GB)\n\
             back end Vulkan: no device\n\
             back end CPU: CPU (A maker's\\nname)\n"
        );
    }
}
