//! Files: the disk and the machine, without any knowledge of models.
//!
//! Takes paths and bytes, gives files that are complete or not there at all. [`staged`] are renamed into their places together,
//! [`unnamed`] leave nothing, [`records`] and [`cache`] keep what may be needed again. `system` holds what differs between
//! systems. [`stamp`] sees that a file changed, [`free_memory`] what is free,
//! [`unique`] that a key stands twice. Uses `error`, `named`, `watch` and `gguf`.

pub mod shell;

pub(crate) mod system;

pub mod records;

pub mod place;

pub mod byte_size;

pub mod cache;

pub mod staged;

pub mod part_name;

pub mod free_memory;

pub mod unique;

pub mod unnamed;

pub mod stamp;
