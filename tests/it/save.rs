//! Writing: what is never overwritten, and that nothing is left, whatever stops the program.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::{Duration, Instant};

use crate::make::{F32, Make};
use crate::shorten::check_tensors;
use crate::util::{Dir, finish, is_ignored, signal, unprivileged};

fn dir() -> Dir {
    Make::new("llama", 3).dir()
}

#[test]
fn an_existing_output_is_overwritten_only_by_force() {
    let dir = dir();
    dir.write("out.gguf", b"precious");
    let output = dir.run("m.gguf --blocks 1 -o out.gguf").fails(1, "out.gguf: exists already");
    assert_eq!(output.hint(), Some("--force overwrites it"));
    dir.run("m.gguf --blocks 1 -o out.gguf --force").succeeds();
    check_tensors(&dir.read("m.gguf"), &dir.read("out.gguf"), &[1]);
    assert_eq!(dir.names(), ["m.gguf", "out.gguf"]);
}

#[test]
fn the_input_is_never_overwritten() {
    let dir = dir();
    fs::create_dir(dir.path("sub")).unwrap();
    symlink("m.gguf", dir.path("soft.gguf")).unwrap();
    symlink("../sub", dir.path("sub/loop")).unwrap();
    symlink("../soft.gguf", dir.path("sub/twice.gguf")).unwrap();
    fs::hard_link(dir.path("m.gguf"), dir.path("hard.gguf")).unwrap();
    let absolute = dir.path("m.gguf").display().to_string();
    for out in [
        "m.gguf",
        "./m.gguf",
        "sub/../m.gguf",
        "sub/loop/../m.gguf",
        "soft.gguf",
        "hard.gguf",
        "sub/twice.gguf",
        &absolute,
    ] {
        for force in ["", "--force"] {
            dir.run(&format!("m.gguf --blocks 1 {force} -o {out}"))
                .fails(1, &format!("{out}: is the input itself"));
        }
    }
    // The other way round: the input by a link, the output by its own name.
    dir.run("soft.gguf --blocks 1 --force -o m.gguf").fails(1, "m.gguf: is the input itself");
}

#[test]
fn a_link_is_replaced_and_what_it_led_to_stays() {
    let dir = dir();
    dir.write("other.gguf", b"precious");
    symlink("other.gguf", dir.path("link.gguf")).unwrap();
    symlink("nowhere.gguf", dir.path("dangling.gguf")).unwrap();
    for link in ["link.gguf", "dangling.gguf"] {
        dir.run(&format!("m.gguf --blocks 1 -o {link}")).fails(1, &format!("{link}: exists already"));
        dir.run(&format!("m.gguf --blocks 1 --force -o {link}")).succeeds();
        check_tensors(&dir.read("m.gguf"), &dir.read(link), &[1]);
    }
    assert_eq!(dir.read("other.gguf"), b"precious");
    assert!(!dir.exists("nowhere.gguf"));
}

#[test]
fn a_place_that_is_no_file_is_refused() {
    let dir = dir();
    fs::create_dir(dir.path("folder")).unwrap();
    dir.sh("mkfifo pipe").succeeds();
    for (out, message) in [
        ("missing/out.gguf", "missing/out.gguf: folder 'missing': No such file or directory (os error 2)"),
        ("m.gguf/out.gguf", "m.gguf/out.gguf: 'm.gguf' is not a folder"),
        ("folder", "folder: is a folder, expected the name of a file"),
        ("..", "..: is not the name of a file"),
        ("pipe", "pipe: is not a regular file"),
        ("/dev/null", "/dev/null: is not a regular file"),
    ] {
        for force in ["", "--force"] {
            dir.run(&format!("m.gguf --blocks 1 {force} -o {out}")).fails(1, message);
        }
    }
    dir.run("m.gguf --blocks 1 -o folder/").fails(1, "folder/: is a folder, expected the name of a file");
    dir.run("m.gguf --blocks 1 -o new/").fails(1, "new/: is not the name of a file");
}

#[test]
#[cfg(target_os = "linux")]
fn a_folder_that_takes_no_files_is_refused_before_the_work() {
    let dir = dir();
    // Not even root can make a file there.
    let output = dir.run("m.gguf --blocks 1 -o /proc/out.gguf").refused();
    output.check(
        output.error().starts_with("/proc/out.gguf: cannot write in folder '/proc': "),
        "an error that names the folder",
    );
    if let Some(wrapper) = unprivileged(&dir) {
        fs::create_dir(dir.path("locked")).unwrap();
        fs::set_permissions(dir.path("locked"), fs::Permissions::from_mode(0o555)).unwrap();
        let output =
            dir.sh(&format!("exec {wrapper} $PROGRAM m.gguf --blocks 1 -o locked/out.gguf")).refused();
        output.check(
            output.error().starts_with("locked/out.gguf: cannot write in folder 'locked': Permission denied"),
            "an error that names the folder",
        );
    }
}

#[test]
fn permissions_are_those_of_the_input_within_the_mask() {
    for (input, mask, output) in [
        (0o644, "022", 0o644),
        (0o664, "022", 0o644),
        (0o666, "000", 0o666),
        (0o600, "022", 0o600),
        (0o440, "027", 0o640),
        (0o755, "022", 0o644),
        (0o666, "077", 0o600),
    ] {
        let dir = dir();
        fs::set_permissions(dir.path("m.gguf"), fs::Permissions::from_mode(input)).unwrap();
        dir.sh(&format!("umask {mask}; exec $PROGRAM m.gguf --blocks 1 -o out.gguf")).succeeds();
        let mode = fs::metadata(dir.path("out.gguf")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, output, "{mode:o}, of {input:o} within {mask}");
    }
}

#[test]
fn a_limit_of_file_size_is_one_error_line_and_leaves_nothing() {
    let dir = large(1 << 18).dir();
    // 8 blocks of 512 or 1024 bytes, depending on the shell.
    for prepare in ["ulimit -f 8", "trap '' XFSZ; ulimit -f 8"] {
        let output = dir.sh(&format!("{prepare}; exec $PROGRAM m.gguf --blocks 1 -o out.gguf")).refused();
        output.check(
            output.error().starts_with("out.gguf: nothing was written: "),
            "a message that nothing was written",
        );
        output.check(output.error().contains("File too large"), "the reason");
    }
    // What was there stays.
    dir.write("out.gguf", b"precious");
    dir.sh("ulimit -f 8; exec $PROGRAM m.gguf --blocks 1 --force -o out.gguf").refused();
    assert_eq!(dir.read("out.gguf"), b"precious");
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_one_error_line_and_leaves_nothing() {
    let dir = large(1 << 20).dir();
    fs::create_dir(dir.path("disk")).unwrap();
    let run = "$PROGRAM m.gguf --blocks 1 -o disk/out.gguf; status=$?; ls -A disk; exit $status";
    // A new name space may allow a mount without rights. Where even that is forbidden, a limit of file size stands
    // in for it.
    let mount = "unshare --user --map-root-user --mount";
    let small = "mount -t tmpfs -o size=1m none disk";
    let can_mount = dir.sh(&format!("{mount} sh -c '{small}'")).output().status.success();
    let (line, reason) = if can_mount {
        (format!("exec {mount} sh -c '{small} && {run}'"), "No space left on device")
    } else {
        (format!("ulimit -f 8; {run}"), "File too large")
    };
    // `refused` also sees from stdout that the disk is empty.
    let output = dir.sh(&line).refused();
    output.check(
        output.error().starts_with("disk/out.gguf: nothing was written: ") && output.error().contains(reason),
        "a message that nothing was written, with the reason",
    );
}

/// Three blocks, each with a tensor of `n_elements` 4-byte elements.
fn large(n_elements: u64) -> Make {
    (0..3).fold(Make::new("llama", 3), |make, block| {
        make.tensor(&format!("blk.{block}.large.weight"), &[n_elements], F32)
    })
}

/// Waits until the unfinished output is there. `false` if the program ended before.
fn wait_until_it_writes(dir: &Dir, child: &mut std::process::Child) -> bool {
    let start = Instant::now();
    loop {
        let writes = fs::read_dir(dir.root()).unwrap().any(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            name.starts_with(".gguf-shorten-") && entry.metadata().is_ok_and(|m| m.len() > 0)
        });
        if writes {
            return true;
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "nothing is written");
        std::thread::sleep(Duration::from_micros(200));
    }
}

#[test]
fn an_interrupt_while_writing_leaves_nothing_and_says_so() {
    let dir = Dir::new();
    // Half a gigabyte takes long to write, though none is on disk.
    large(1 << 26).write_sparse(&dir, "m.gguf");
    dir.write("old.gguf", b"precious");
    for (name, out) in [
        ("INT", "out.gguf"),
        ("TERM", "out.gguf"),
        ("HUP", "out.gguf"),
        ("QUIT", "out.gguf"),
        ("USR1", "out.gguf"),
        ("INT", "--force old.gguf"),
    ] {
        if is_ignored(name) {
            continue;
        }
        // Quiet: of a model of zeros there is a warning.
        let arguments = format!("m.gguf -q --blocks 1 -o {out}").replace("-o --force", "--force -o");
        let before = dir.names();
        // A machine that writes faster than this looks gets another try.
        let interrupted = (0..20).any(|_| {
            let _ = fs::remove_file(dir.path("out.gguf"));
            let mut child = dir.run(&arguments).spawn();
            if wait_until_it_writes(&dir, &mut child) {
                signal(child.id(), name);
            }
            let output = finish(&dir, Default::default(), arguments.clone(), child);
            if output.status.success() {
                return false;
            }
            output.check(output.status.code() == Some(130), "status 130");
            output.check(
                output.stderr == "gguf-shorten: interrupted; nothing was written\n",
                "one line that says so",
            );
            output.check(output.stdout.is_empty(), "nothing on stdout");
            output.check(dir.names() == before, "nothing left");
            true
        });
        assert!(interrupted, "twenty runs ended before the signal {name}");
        assert_eq!(dir.read("old.gguf"), b"precious");
    }
}

#[test]
fn a_signal_that_is_ignored_ends_nothing() {
    let dir = Dir::new();
    large(1 << 26).write_sparse(&dir, "m.gguf");
    let mut child = dir.sh("trap '' HUP; exec $PROGRAM m.gguf -q --blocks 1 -o out.gguf").spawn();
    if wait_until_it_writes(&dir, &mut child) {
        signal(child.id(), "HUP");
    }
    let output = finish(&dir, Default::default(), "m.gguf".to_owned(), child);
    output.check(output.status.success() && dir.exists("out.gguf"), "an output");
}

#[test]
fn an_interrupt_after_the_terminal_is_gone_leaves_nothing() {
    if is_ignored("HUP") {
        return;
    }
    let dir = Dir::new();
    large(1 << 26).write_sparse(&dir, "m.gguf");
    let interrupted = (0..20).any(|_| {
        let _ = fs::remove_file(dir.path("out.gguf"));
        let mut child = dir.run("m.gguf --blocks 1 -o out.gguf").spawn();
        // Nobody reads what is said.
        drop(child.stdout.take());
        drop(child.stderr.take());
        if wait_until_it_writes(&dir, &mut child) {
            signal(child.id(), "HUP");
        }
        let output = finish(&dir, Default::default(), "m.gguf".to_owned(), child);
        if output.status.success() {
            return false;
        }
        output.check(output.status.code() == Some(130), "status 130");
        output.check(dir.names() == ["m.gguf"], "nothing left");
        true
    });
    assert!(interrupted, "twenty runs ended before the signal");
}

#[test]
fn a_signal_at_any_moment_leaves_all_or_nothing() {
    let dir = large(1 << 18).dir();
    dir.run("m.gguf --blocks 1 -o whole.gguf").succeeds();
    let whole = dir.read("whole.gguf");
    for i in 0..80u64 {
        let child = dir.run("m.gguf --blocks 1 -o out.gguf").spawn();
        std::thread::sleep(Duration::from_micros(i * 500));
        signal(child.id(), "TERM");
        let output = finish(&dir, Default::default(), "m.gguf".to_owned(), child);
        let names = dir.names();
        if dir.exists("out.gguf") {
            output.check(names == ["m.gguf", "out.gguf", "whole.gguf"], "the output");
            assert!(dir.read("out.gguf") == whole, "a whole output");
            output.check(!output.stderr.contains("nothing was written"), "no word that nothing was written");
            fs::remove_file(dir.path("out.gguf")).unwrap();
        } else {
            output.check(!output.status.success(), "no success without an output");
            output.check(names == ["m.gguf", "whole.gguf"], "nothing left");
        }
        output.check(output.stderr.lines().count() <= 1, "at most one line");
    }
}

#[test]
fn a_second_run_to_the_same_place_does_not_overwrite_the_first() {
    let dir = dir();
    let children: Vec<_> = (0..6).map(|_| dir.run("m.gguf --blocks 1 -o out.gguf").spawn()).collect();
    let outputs: Vec<_> = children
        .into_iter()
        .map(|child| finish(&dir, Default::default(), "six at once".to_owned(), child))
        .collect();
    let n = outputs.iter().filter(|o| o.status.success()).count();
    assert_eq!(n, 1, "exactly one run writes");
    for output in outputs.iter().filter(|o| !o.status.success()) {
        output.check_error_lines();
        let early = "out.gguf: exists already";
        let late = "out.gguf: nothing was written: File exists (os error 17)";
        output.check([early, late].contains(&output.error()), "the reason, once");
    }
    assert_eq!(dir.names(), ["m.gguf", "out.gguf"]);
    check_tensors(&dir.read("m.gguf"), &dir.read("out.gguf"), &[1]);
}

#[test]
fn bytes_after_the_last_tensor_are_not_carried_over() {
    let dir = dir();
    let mut bytes = dir.read("m.gguf");
    dir.run("m.gguf --blocks 1 -o a.gguf").succeeds();
    bytes.extend(b"appended");
    dir.write("m.gguf", &bytes);
    let shown = dir.run("show m.gguf").succeeds().stdout;
    assert!(shown.contains("8 bytes after the last tensor"), "{shown}");
    dir.run("m.gguf --blocks 1 -o b.gguf").succeeds();
    assert_eq!(dir.read("a.gguf").len(), dir.read("b.gguf").len());
    check_tensors(&bytes, &dir.read("b.gguf"), &[1]);
}
