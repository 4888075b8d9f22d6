//! Pages of help: what `gguf-shorten help TOPIC` prints.
//!
//! Each page is a file beside this one, so that the text is written once for a terminal, for rustdoc and for readers of the
//! repository.

/// One page.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// The topic by which it is asked for; that of a command follows the command's own help.
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
    choosing sureness healing search goals stores json architectures machines limits measured changes library
    shorten score eval compare batch report cache
}
