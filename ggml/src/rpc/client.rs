//! The side of the protocol that asks: a greeting from here, then all else by ggml.

use std::collections::BTreeSet;
use std::ffi::{CString, c_char};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpStream, ToSocketAddrs};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use llama_cpp_sys_2 as sys;

use super::{Device, Endpoint};
use crate::Backend;

/// How long a server may take to be reached.
const REACH: Duration = Duration::from_secs(5);

/// How long it may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// The version of the protocol that ggml speaks here (`ggml-rpc.h`).
const MAJOR: u8 = 7;
const MINOR: u8 = 0;

/// `RPC_CMD_HELLO`.
const HELLO: u8 = 14;

/// `RPC_CONN_CAPS_SIZE`: what a side can do beside TCP, of which here nothing is.
const CAPABILITIES: usize = 24;

unsafe extern "C" {
    fn ggml_backend_rpc_add_server(endpoint: *const c_char) -> sys::ggml_backend_reg_t;
}

/// The devices of a server, once it was seen to answer.
pub(super) fn devices_of(_backend: &Backend, endpoint: &Endpoint) -> Result<Vec<Device>, String> {
    /// Servers that have answered. With such a one ggml may still be connected, and each serves one client at a time.
    static ANSWERED: Mutex<BTreeSet<SocketAddrV4>> = Mutex::new(BTreeSet::new());
    let address = resolve(endpoint)?;
    let mut answered = ANSWERED.lock().unwrap_or_else(PoisonError::into_inner);
    if !answered.contains(&address) {
        greet(address, ANSWER)?;
        answered.insert(address);
    }
    // The address that answered; its name may resolve differently next time.
    let address = CString::new(address.to_string()).map_err(|error| error.to_string())?;
    // SAFETY: the address is NUL-terminated and outlives the call, which copies it.
    let registry = unsafe { ggml_backend_rpc_add_server(address.as_ptr()) };
    if registry.is_null() {
        return Err("has no device".to_owned());
    }
    // SAFETY: a registry of a server is never freed.
    let n = unsafe { sys::ggml_backend_reg_dev_count(registry) };
    let device = |i| {
        // SAFETY: as above, and `i` is less than the number of its devices.
        Device(unsafe { sys::ggml_backend_reg_dev_get(registry, i) })
    };
    Ok((0..n).map(device).collect())
}

/// The address that ggml would use: it knows IPv4 alone.
fn resolve(endpoint: &Endpoint) -> Result<SocketAddrV4, String> {
    let addresses = (endpoint.host.as_str(), endpoint.port)
        .to_socket_addrs()
        .map_err(|error| format!("is not known: {error}"))?;
    let mut addresses = addresses.filter_map(|address| match address {
        SocketAddr::V4(address) => Some(address),
        SocketAddr::V6(_) => None,
    });
    addresses.next().ok_or_else(|| "has no IPv4 address, and ggml takes no other".to_owned())
}

/// Greets the server as ggml does, and leaves. It may take as long as `patience` to answer.
fn greet(address: SocketAddrV4, patience: Duration) -> Result<(), String> {
    let stream = TcpStream::connect_timeout(&address.into(), REACH);
    let stream = stream.map_err(|error| format!("cannot be reached: {error}"))?;
    let answer = hello(stream, patience).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => format!(
            "does not answer within {} seconds: a server has one client at a time, and this one may have another",
            patience.as_secs()
        ),
        _ => format!("does not answer as an RPC server of llama.cpp: {error}"),
    })?;
    let [major, minor, patch] = answer;
    if major != MAJOR || minor > MINOR {
        return Err(format!(
            "speaks version {major}.{minor}.{patch} of the protocol, expected {MAJOR}.{MINOR} as llama.cpp {} does",
            crate::backend::llama_cpp_version()
        ));
    }
    Ok(())
}

/// The version that the server speaks. A request is a command, the length of what follows, and that; an answer is its length,
/// and that (`ggml-rpc.cpp: send_rpc_cmd`), all little-endian.
fn hello(mut stream: TcpStream, patience: Duration) -> io::Result<[u8; 3]> {
    /// The answer: three version numbers, a padding byte, and the server's capabilities.
    const ANSWER_BYTES: usize = 4 + CAPABILITIES;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let mut request = vec![HELLO];
    request.extend((CAPABILITIES as u64).to_le_bytes());
    request.extend([0; CAPABILITIES]);
    stream.write_all(&request)?;
    let mut len = [0; 8];
    stream.read_exact(&mut len)?;
    if u64::from_le_bytes(len) != ANSWER_BYTES as u64 {
        return Err(io::Error::other("its greeting has another length"));
    }
    let mut answer = [0; ANSWER_BYTES];
    stream.read_exact(&mut answer)?;
    Ok([answer[0], answer[1], answer[2]])
}

/// Serves this machine's CPU at an address, for tests. It has `n_threads` threads, and serves for as long as the process lives.
///
/// # Panics
/// Where that cannot be done.
#[cfg(feature = "test-support")]
pub fn serve(_backend: &Backend, address: SocketAddrV4, n_threads: usize) -> ! {
    unsafe extern "C" {
        fn ggml_backend_rpc_start_server(
            endpoint: *const c_char,
            cache_dir: *const c_char,
            n_threads: usize,
            n_devices: usize,
            devices: *mut sys::ggml_backend_dev_t,
        );
    }
    let endpoint = CString::new(address.to_string()).unwrap_or_default();
    // SAFETY: no pointers are passed; null where there is none, which the server refuses.
    let cpu = unsafe { sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU) };
    let mut devices = [cpu];
    // SAFETY: the address is NUL-terminated, no cache is named, and `devices` has the one device that is told. All outlive the
    // call.
    unsafe {
        ggml_backend_rpc_start_server(
            endpoint.as_ptr(),
            std::ptr::null(),
            n_threads,
            1,
            devices.as_mut_ptr(),
        );
    }
    panic!("no server at {address}");
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_server_that_stays_silent_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else {
            panic!("an address of IPv4");
        };
        // The system takes the connection, and nobody answers.
        let error = greet(address, Duration::from_millis(20)).unwrap_err();
        assert!(error.starts_with("does not answer within 0 seconds: a server has one client"), "{error}");
        assert_eq!(ANSWER, Duration::from_secs(10));
    }
}
