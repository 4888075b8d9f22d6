//! Remote devices for parts of a model, by ggml's RPC back end. Each runs llama.cpp's `rpc-server`.
//!
//! That back end ends the process where a server cannot be reached or speaks another version of the protocol. So each server
//! is asked first, by the same greeting, from here. What it does later, such as to vanish, ends the process with one line
//! ([`Backend::on_abort`]).

use std::fmt;
use std::str::FromStr;

use llama_cpp_sys_2 as sys;

use crate::{Backend, Error};

/// Whether this was built with it (feature `rpc`).
pub const IS_BUILT: bool = cfg!(feature = "rpc");

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    host: String,
    port: u16,
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("'{text}' is no HOST:PORT");
        let (host, port) = text.rsplit_once(':').ok_or_else(expected)?;
        let digits = Some(port).filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
        let port: u16 = digits.and_then(|port| port.parse().ok()).ok_or_else(expected)?;
        if host.is_empty() || port == 0 || host.contains(|c: char| c == ':' || c.is_whitespace()) {
            return Err(expected());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Servers in the order in which they take blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints(Vec<Endpoint>);

impl Endpoints {
    /// More than llama.cpp knows what to do with (`GGML_RPC_MAX_SERVERS`).
    const TOO_MANY: usize = 17;

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for Endpoints {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut endpoints = Vec::new();
        for endpoint in text.split(',') {
            let endpoint: Endpoint = endpoint.trim().parse()?;
            if endpoints.contains(&endpoint) {
                return Err(format!("{endpoint} is named twice"));
            }
            endpoints.push(endpoint);
        }
        match endpoints.len() {
            Self::TOO_MANY.. => Err(format!("more than {} servers", Self::TOO_MANY - 1)),
            _ => Ok(Self(endpoints)),
        }
    }
}

/// As they are given.
impl fmt::Display for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&all.join(","))
    }
}

/// A device of a server. It is made once and never freed.
#[cfg_attr(not(feature = "rpc"), allow(dead_code, reason = "where there are no servers there is none"))]
#[derive(Clone, Copy, Debug)]
struct Device(sys::ggml_backend_dev_t);

// SAFETY: a device is a table of functions and a constant; llama.cpp itself uses one from several threads.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

/// Servers that were reached.
#[derive(Clone, Copy, Debug)]
pub struct Servers(&'static [Device]);

impl Servers {
    /// Reaches each of `endpoints`.
    ///
    /// # Errors
    /// [`Error::Rpc`] of the first that cannot be reached, or takes no requests; all of them where this was built without
    /// feature `rpc`.
    pub fn reach(backend: &Backend, endpoints: &Endpoints) -> Result<Self, Error> {
        let mut devices = Vec::new();
        for endpoint in &endpoints.0 {
            let found = devices_of(backend, endpoint)
                .map_err(|reason| Error::Rpc { endpoint: endpoint.to_string(), reason })?;
            devices.extend(found);
        }
        Ok(Self(devices.leak()))
    }

    /// Their devices, followed by those of this machine that are no CPU. So llama.cpp's own programs order them. Then a null
    /// pointer.
    pub(crate) fn with_local(self) -> Vec<sys::ggml_backend_dev_t> {
        let mut devices: Vec<_> = self.0.iter().map(|device| device.0).collect();
        // SAFETY: no arguments.
        let n = unsafe { sys::ggml_backend_dev_count() };
        for i in 0..n {
            // SAFETY: `i` is less than their number.
            let device = unsafe { sys::ggml_backend_dev_get(i) };
            // SAFETY: a device of the registry lives as long as the process.
            if unsafe { sys::ggml_backend_dev_type(device) } == sys::GGML_BACKEND_DEVICE_TYPE_GPU {
                devices.push(device);
            }
        }
        devices.push(std::ptr::null_mut());
        devices
    }
}

#[cfg(not(feature = "rpc"))]
fn devices_of(_backend: &Backend, _endpoint: &Endpoint) -> Result<Vec<Device>, String> {
    Err("this program was built without feature 'rpc'".to_owned())
}

#[cfg(feature = "rpc")]
use client::devices_of;

#[cfg(feature = "rpc")]
mod client;

#[cfg(all(feature = "rpc", feature = "test-support"))]
pub use client::serve;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_a_list() {
        let servers: Endpoints = "a:1,b:2".parse().unwrap();
        assert_eq!(servers.to_string(), "a:1,b:2");
        assert!(!servers.is_empty() && Endpoints::default().is_empty());
        assert_eq!("a:1,".parse::<Endpoints>(), Err("'' is no HOST:PORT".to_owned()));
        assert_eq!("a:1,a:1".parse::<Endpoints>(), Err("a:1 is named twice".to_owned()));
        let many: Vec<String> = (1..18).map(|port| format!("a:{port}")).collect();
        assert_eq!(many.join(",").parse::<Endpoints>(), Err("more than 16 servers".to_owned()));
        assert!(many[1..].join(",").parse::<Endpoints>().is_ok());
    }

    #[test]
    fn endpoints_are_a_host_and_a_port() {
        let endpoint: Endpoint = "10.0.0.7:50052".parse().unwrap();
        assert_eq!(endpoint.to_string(), "10.0.0.7:50052");
        for text in ["", "host", "host:", ":1", "host:0", "host:65536", "::1:1", "a b:1", "h:-1", "h:+1"] {
            assert_eq!(text.parse::<Endpoint>(), Err(format!("'{text}' is no HOST:PORT")),);
        }
    }
}
