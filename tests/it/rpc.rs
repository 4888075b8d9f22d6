//! `--rpc`: what is wrong with it is said before any model is loaded.

use crate::make::Make;
use crate::util::Dir;

fn dir() -> Dir {
    Make::new("llama", 4).dir()
}

#[test]
fn what_is_no_server_is_refused() {
    let dir = dir();
    for (servers, message) in [
        ("host", "'host' is no HOST:PORT"),
        ("a:1,:2", "':2' is no HOST:PORT"),
        ("a:1,a:1", "a:1 is named twice"),
        ("[::1]:5", "'[::1]:5' is no HOST:PORT"),
    ] {
        for command in ["score m.gguf", "eval m.gguf", "m.gguf --drop 1 -o o.gguf"] {
            let message = format!("invalid value '{servers}' for '--rpc <HOST:PORT,...>': {message}");
            dir.run(&format!("{command} --rpc {servers}")).fails(2, &message);
        }
    }
}

#[cfg(not(feature = "rpc"))]
#[test]
fn without_its_feature_it_is_refused_with_the_way_to_build_it() {
    let dir = dir();
    for command in ["score m.gguf", "eval m.gguf", "m.gguf --drop 1 -o o.gguf", "compare m.gguf --drop 1"] {
        let output = dir
            .run(&format!("{command} --rpc localhost:50052"))
            .fails(2, "--rpc needs feature 'rpc', without which this program was built");
        assert!(
            output.stderr.ends_with("hint: cargo build --release --features rpc builds it in\n"),
            "{}",
            output.stderr
        );
    }
    // A batch blames wrong flags on the first model.
    dir.run("batch m.gguf --drop 1 --out-dir out --rpc localhost:50052")
        .fails(2, "m.gguf: --rpc needs feature 'rpc', without which this program was built");
}

#[cfg(feature = "rpc")]
#[test]
fn what_servers_do_not_evaluate_is_refused() {
    let dir = dir();
    for (command, what) in [
        ("m.gguf --drop 1 -o o.gguf --heal linear", "--heal"),
        ("m.gguf --drop 1 -o o.gguf --method search", "method 'search'"),
        ("m.gguf --max-kl 0.1 -o o.gguf", "--max-kl"),
        ("m.gguf --objective draft --method search -o o.gguf", "--objective draft"),
        ("score m.gguf --ablate", "--ablate"),
        ("compare m.gguf --drop 1 --method ablate", "method 'ablate'"),
    ] {
        dir.run(&format!("{command} --rpc localhost:50052")).fails(
            2,
            &format!("{what} evaluates blocks one by one on this machine, so it does not go with --rpc"),
        );
    }
}
