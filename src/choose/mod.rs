//! Choose: which blocks are removed.
//!
//! Takes scores, losses or a list ([`settings`]), gives a set that the architecture allows, with how it was found
//! ([`outcome`], [`rating`]). `selection` is the entry; [`removal`] chooses by scores, [`search`] by measured losses, `auto` among the sets of several methods,
//! [`stability`] says how sure a choice is. Uses `measure` and the rooms before it; it does not see `heal`.

pub(crate) mod resume;

pub(crate) mod request;

pub mod lorp;

pub mod method;

pub mod attention;

pub(crate) mod experts;

pub(crate) mod expert_sets;

pub mod outcome;

pub mod rating;

pub mod settings;

pub(crate) mod ablated;

pub(crate) mod auto;

pub(crate) mod rows;

pub(crate) mod goals;

pub(crate) mod job;

pub(crate) mod measured;

pub(crate) mod runs;

pub(crate) mod scored;

pub(crate) mod loaded;

pub mod selection;

pub(crate) mod tasked;

pub mod removal;

pub mod search;

pub mod stability;
