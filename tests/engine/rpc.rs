//! Blocks that servers evaluate: llama.cpp's own RPC server, on this machine's loopback.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use ggml::Backend;
use serde_json::Value;

use crate::eval::byte_model;
use crate::program::{json, on_one_thread};

/// An address where nothing listens.
fn free() -> SocketAddrV4 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    match listener.local_addr().unwrap() {
        SocketAddr::V4(address) => address,
        SocketAddr::V6(_) => unreachable!(),
    }
}

/// A server of its own, for as long as the tests run.
fn serve() -> SocketAddrV4 {
    let address = free();
    std::thread::spawn(move || {
        ggml::rpc::serve(Backend::init(), address, 1);
    });
    let start = Instant::now();
    while TcpStream::connect(address).is_err() {
        assert!(start.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(10));
    }
    address
}

/// The largest relative difference of any block's scores.
fn difference(a: &Value, b: &Value) -> f64 {
    let blocks = |result: &Value| result["blocks"].as_array().unwrap().clone();
    let (a, b) = (blocks(a), blocks(b));
    assert_eq!(a.len(), b.len());
    let mut largest = 0f64;
    for (a, b) in a.iter().zip(&b) {
        for key in ["bi", "relative_magnitude", "attention_bi", "ffn_bi"] {
            match (a[key].as_f64(), b[key].as_f64()) {
                (Some(a), Some(b)) => largest = largest.max((a - b).abs() / a.abs()),
                (a, b) => assert_eq!(a, b, "{key}"),
            }
        }
    }
    largest
}

#[test]
fn scores_from_servers_are_the_local_ones_within_rounding() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let [one, other] = [serve(), serve()];
    for architecture in ["llama", "gemma3", "mamba2"] {
        byte_model(architecture, 6).save(Backend::init(), &dir.join("m.gguf")).unwrap();
        let text = "--tokens 128 --window 32 --no-cache";
        let halves = if architecture == "llama" { "--sub-blocks" } else { "" };
        let score = format!("score m.gguf {text} {halves}");
        let local = json(dir, &score);
        for servers in [
            format!("--rpc {one}"),
            // A part of the blocks each.
            format!("--rpc {one},{other}"),
            // The first blocks are evaluated here.
            format!("--rpc {other} --gpu-layers 3"),
        ] {
            let remote = json(dir, &format!("{score} {servers}"));
            let found = difference(&local, &remote);
            assert!(found < 1e-4, "{architecture} {servers}: {found}");
            assert_eq!(remote["calibration"]["tokens"], 128);
        }
        // Servers have evaluated it.
        let output = on_one_thread(dir, &format!("{score} --rpc {one} -v"));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(&format!("RPC0[{one}]")), "{said}");
    }
    // What rests on scores, and what is measured of a whole model.
    let drop = "m.gguf --drop 2 --tokens 128 --window 32 --dry-run";
    for method in ["bi", "run"] {
        let drop = format!("{drop} --method {method}");
        let local = json(dir, &drop);
        let remote = json(dir, &format!("{drop} --rpc {one}"));
        assert_eq!(local["removed"], remote["removed"]);
        // Servers round in their own way.
        assert_eq!(remote["calibration"]["cached"], false);
        let again = json(dir, &format!("{drop} --rpc {one}"));
        assert_eq!(again["calibration"]["cached"], true);
    }
    let eval = "eval m.gguf --tokens 128 --window 32";
    let perplexity = |arguments: &str| json(dir, arguments)["perplexity"].as_f64().unwrap();
    let (local, remote) = (perplexity(eval), perplexity(&format!("{eval} --rpc {one}")));
    assert!((local - remote).abs() / local < 1e-4, "{local} {remote}");
}

/// A server that treats each client as `answer` does.
fn pretend(answer: impl Fn(usize, TcpStream) + Send + 'static) -> SocketAddrV4 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let SocketAddr::V4(address) = listener.local_addr().unwrap() else { unreachable!() };
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            answer(number, stream.unwrap());
        }
    });
    address
}

/// Reads a greeting, and answers with this version.
fn greet(stream: &mut TcpStream, version: [u8; 3]) {
    let mut request = [0; 33];
    stream.read_exact(&mut request).unwrap();
    assert_eq!(request[..9], [14, 24, 0, 0, 0, 0, 0, 0, 0]);
    let mut answer = vec![28, 0, 0, 0, 0, 0, 0, 0];
    answer.extend(version);
    answer.extend([0; 25]);
    stream.write_all(&answer).unwrap();
}

#[test]
fn a_server_that_is_none_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    byte_model("llama", 4).save(Backend::init(), &dir.join("m.gguf")).unwrap();
    let failure = |server: &str| {
        let run = format!("m.gguf --drop 1 --tokens 64 --window 32 -o out.gguf --rpc {server}");
        let output = on_one_thread(dir, &run);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(output.stdout.is_empty() && !dir.join("out.gguf").exists());
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.lines().count(), 1, "{said}");
        said
    };
    let closed = free();
    assert_eq!(
        failure(&closed.to_string()),
        format!("gguf-shorten: RPC server {closed}: cannot be reached: Connection refused (os error 111)\n")
    );
    assert!(
        failure("no-such-host.invalid:5")
            .starts_with("gguf-shorten: RPC server no-such-host.invalid:5: is not known: ")
    );
    let web = pretend(|_, mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    assert!(failure(&web.to_string()).contains("does not answer as an RPC server of llama.cpp: "));
    let old = pretend(|_, mut stream| greet(&mut stream, [3, 6, 0]));
    assert!(
        failure(&old.to_string())
            .contains("speaks version 3.6.0 of the protocol, expected 7.0 as llama.cpp ")
    );
    // One that goes away later ends the program with a line, too.
    let gone = pretend(|_, mut stream| greet(&mut stream, [7, 0, 0]));
    let said = failure(&gone.to_string());
    assert!(
        said.starts_with("gguf-shorten: m.gguf: llama.cpp gave up on this model: Remote RPC server crashed"),
        "{said}"
    );
}
