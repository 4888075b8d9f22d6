//! Pages of help: what `gguf-shorten help TOPIC` prints.
//!
//! Each page is a file beside this one, so that the text is written once for a terminal, for rustdoc and for readers of the
//! repository.

/// One page.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// The topic by which it is asked for. That of a command follows the command's own help.
    pub topic: &'static str,
    /// Its text, in Markdown. The first line is its title.
    pub text: &'static str,
}

impl Page {
    /// The page on `topic`, if there is one.
    #[must_use]
    pub fn find(topic: &str) -> Option<Self> {
        PAGES.iter().find(|page| page.topic == topic).copied()
    }

    /// What it is about.
    #[must_use]
    pub fn title(self) -> &'static str {
        self.text.lines().next().unwrap_or("").trim_start_matches("# ")
    }
}

/// Declares the pages, and a module of documentation for each.
macro_rules! pages {
    ($($topic:ident)+) => {
        /// All pages, in the order in which they are listed.
        pub const PAGES: &[Page] = &[$(Page {
            topic: stringify!($topic),
            text: include_str!(concat!(stringify!($topic), ".md")),
        }),+];

        $(#[doc = include_str!(concat!(stringify!($topic), ".md"))] pub mod $topic {})+
    };
}

pages! {
    choosing sureness healing search goals experts stores json architectures machines limits measured changes library
    shorten score eval compare fit batch report cache
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::arch::{Alone, Architecture, Experts};

    /// The names of the list after `start`, up to a full stop.
    fn list<'p>(page: &'p str, start: &str) -> Vec<&'p str> {
        let (_, after) = page.split_once(start).unwrap();
        let (_, list) = after.split_once(":\n").unwrap();
        let (list, _) = list.split_once(".\n").unwrap();
        list.split(',').map(str::trim).collect()
    }

    #[test]
    fn the_page_lists_every_architecture_once() {
        let page = Page::find("architectures").unwrap().text.replace("\\_", "_");
        let mut listed = list(&page, "Any set of blocks may go");
        listed.extend(list(&page, "Some sets may not go"));
        listed.sort_unstable();
        let mut known: Vec<_> = Architecture::all().iter().map(|architecture| architecture.name).collect();
        known.sort_unstable();
        assert_eq!(listed, known);
        assert!(page.contains(&format!("\n{}, by the name", known.len())));
    }

    #[test]
    fn the_page_on_experts_lists_every_architecture_whose_experts_may_go() {
        let page = Page::find("experts").unwrap().text.replace("\\_", "_");
        let routed = Architecture::all().iter().filter(|row| matches!(row.experts, Experts::Routed(..)));
        let mut known: Vec<_> = routed.map(|row| row.name).collect();
        known.sort_unstable();
        assert_eq!(list(&page, "It works for"), known);
    }

    #[test]
    fn the_page_on_searches_counts_those_whose_blocks_are_exact_alone() {
        let exact = Architecture::all().iter().filter(|architecture| architecture.alone == Alone::Exact);
        let count = format!("{} architectures are known to pass", exact.count());
        assert!(Page::find("search").unwrap().text.contains(&count), "{count}");
    }
}
