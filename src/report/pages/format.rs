//! What a page of results is written as.

use std::path::Path;

use crate::named::named;

named! {
    /// What a page of results is written as.
    pub enum PageFormat {
        /// One page with charts and tables that fetches nothing
        Html = "html",
        /// The charts alone
        Svg = "svg",
        /// Tables as Markdown
        Md = "md",
        /// The table of all models, with all digits
        Csv = "csv",
    }
}

impl PageFormat {
    /// That of a file with this name.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let ending = path.extension()?.to_str()?.to_ascii_lowercase();
        match ending.as_str() {
            "html" | "htm" => Some(Self::Html),
            "svg" => Some(Self::Svg),
            "md" | "markdown" => Some(Self::Md),
            "csv" => Some(Self::Csv),
            _ => None,
        }
    }
}
