//! The house: imports in one direction, no circles, small functions. Each room of `src` imports only from rooms before it.
//!
//! Every path is read with syn: `use` and `pub use`, inline `crate::x::y`, `super::super`, also in macros and tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Block, FnArg, Item, ItemMod, ItemUse, Macro, Pat, Signature, Type, UseTree};
use walkdir::WalkDir;

/// The rooms, in order: each may use those before it.
const ROOMS: &[&str] = &[
    "gguf", "error", "named", "watch", "files", "model", "plan", "output", "engine", "measure", "choose",
    "heal", "fit", "report", "cli",
];

/// Rooms that do not see each other, whatever their order.
const APART: &[(&str, &str)] = &[("output", "engine"), ("choose", "heal"), ("heal", "fit")];

/// Imports against the order that are still there: the file, and the room that it uses. This list only shrinks.
const EXCEPTIONS: &[(&str, &str)] = &[];

/// Circles of modules that are still there.
const CIRCLES: &[&str] = &[];

/// The files that may ask which system it is, and what they hold. Tests may ask anywhere.
const OF_SYSTEMS: &[(&str, &str)] = &[
    ("src/cli/batch/child.rs", "processes"),
    ("src/files/free_memory.rs", "free memory"),
    ("src/files/system.rs", "names, identity, rights, links, locks and room of files"),
    ("src/files/unnamed.rs", "files without a name"),
    ("src/model/stores/hugging_face.rs", "where llama.cpp keeps what it fetches"),
    ("ggml/src/error.rs", "paths as C takes them"),
    ("ggml/src/fault.rs", "which of the files for the end of a process is compiled"),
    ("ggml/src/fault/signals.rs", "signals"),
    ("ggml/src/fault/unix.rs", "the end of a process"),
    ("ggml/src/kernels.rs", "files of kernels"),
    ("ggml/src/limits.rs", "limits of a process"),
    ("ggml/src/mapping.rs", "memory of a mapping"),
    ("ggml/src/source.rs", "which of the files for streams is compiled"),
    ("ggml/src/testing.rs", "signals that tests raise"),
];

/// Lines of code of a function at most. Blank lines and comments do not count.
const MAX_LINES: usize = 80;

/// Parameters of a function at most, `self` among them.
const MAX_PARAMETERS: usize = 6;

/// A path of the crate that a file names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Named {
    /// From the crate's root.
    path: Vec<String>,
    /// Whether it is given on to others.
    is_public_use: bool,
    /// Whether a test names it.
    in_test: bool,
}

/// Collects the paths of one file.
struct Collector {
    /// Where the code stands that is looked at.
    module: Vec<String>,
    in_test: bool,
    found: Vec<Named>,
}

impl Collector {
    /// Makes a path absolute. `None` if it does not begin with `crate`, `super` or `self`.
    fn resolve(&self, segments: &[String]) -> Option<Vec<String>> {
        let n_heads =
            segments.iter().take_while(|s| ["crate", "super", "self"].contains(&s.as_str())).count();
        let (heads, rest) = segments.split_at(n_heads);
        let mut base = match heads.first()?.as_str() {
            "crate" => Vec::new(),
            _ => self.module.clone(),
        };
        let n_up = heads.iter().filter(|head| *head == "super").count();
        base.truncate(base.len().saturating_sub(n_up));
        base.extend_from_slice(rest);
        Some(base)
    }

    fn add(&mut self, segments: &[String], is_public_use: bool) {
        if let Some(path) = self.resolve(segments) {
            let in_test = self.in_test;
            self.found.push(Named { path, is_public_use, in_test });
        }
    }

    fn add_tree(&mut self, tree: &UseTree, before: &[String], is_public: bool) {
        let with = |name: &dyn ToString| [before, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.add_tree(&path.tree, &with(&path.ident), is_public),
            UseTree::Name(name) => self.add(&with(&name.ident), is_public),
            UseTree::Rename(name) => self.add(&with(&name.ident), is_public),
            UseTree::Glob(_) => self.add(before, is_public),
            UseTree::Group(group) => {
                group.items.iter().for_each(|item| self.add_tree(item, before, is_public))
            }
        }
    }

    /// Collects paths among a macro's tokens, which syn leaves unparsed.
    fn add_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut n_colons = 0;
        for token in tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => n_colons += 1,
                TokenTree::Ident(ident) => {
                    if n_colons != 2 {
                        self.add(&std::mem::take(&mut path), false);
                    }
                    path.push(ident.to_string());
                    n_colons = 0;
                }
                other => {
                    self.add(&std::mem::take(&mut path), false);
                    n_colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.add_tokens(group.stream());
                    }
                }
            }
        }
        self.add(&path, false);
    }
}

impl<'ast> Visit<'ast> for Collector {
    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        let outside = self.in_test;
        self.in_test |= item.ident == "tests" && item.content.is_some();
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
        self.in_test = outside;
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        let is_public = !matches!(item.vis, syn::Visibility::Inherited);
        self.add_tree(&item.tree, &[], is_public);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<_> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.add(&segments, false);
        visit::visit_path(self, path);
    }

    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {
        // `pub(crate)` names no module.
    }

    fn visit_macro(&mut self, item: &'ast Macro) {
        self.add_tokens(item.tokens.clone());
    }
}

/// A file of `src`: its path from there, its module, and the paths that it names.
struct Source {
    file: String,
    module: Vec<String>,
    named: Vec<Named>,
}

/// The Rust files in a folder of the repository, by relative path.
fn files(folder: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let files = WalkDir::new(&root).sort_by_file_name().into_iter().map(|entry| entry.unwrap().into_path());
    let is_code = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    let read = |path: PathBuf| {
        let file = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        (file, fs::read_to_string(&path).unwrap())
    };
    files.filter(is_code).map(read).collect()
}

fn sources() -> Vec<Source> {
    let source = |(file, code): (String, String)| {
        let module = module_of(&file);
        let syntax = syn::parse_file(&code).unwrap();
        let mut collector = Collector { module: module.clone(), in_test: false, found: Vec::new() };
        collector.visit_file(&syntax);
        // The program itself names the library from outside.
        assert!(file != "main.rs" || !syntax.items.iter().any(|item| matches!(item, Item::Mod(_))));
        Source { file, module, named: collector.found }
    };
    files("src").into_iter().map(source).collect()
}

fn module_of(file: &str) -> Vec<String> {
    let mut parts: Vec<_> = file.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    if ["mod", "lib", "main"].contains(&parts.last().unwrap().as_str()) {
        parts.pop();
    }
    parts
}

/// Why `from` may not use `to`, if it may not.
fn refusal(from: &str, to: &str) -> Option<String> {
    let at = |room: &str| ROOMS.iter().position(|other| *other == room);
    let (Some(place), Some(other)) = (at(from), at(to)) else {
        return Some(format!("{from} or {to} is no room of the list"));
    };
    let apart = APART.iter().any(|&(a, b)| (from, to) == (a, b) || (from, to) == (b, a));
    match () {
        () if apart => Some(format!("{from} does not see {to}")),
        () if other > place => Some(format!("{to} comes after {from}")),
        () => None,
    }
}

#[test]
fn rooms_import_only_from_rooms_before_them() {
    let mut found = BTreeSet::new();
    let mut why = BTreeMap::new();
    for source in sources() {
        // The front of the house shows all rooms.
        let Some(room) = source.module.first() else {
            continue;
        };
        for named in &source.named {
            let Some(other) = named.path.first().filter(|other| *other != room) else {
                continue;
            };
            let mut problem = refusal(room, other);
            if named.is_public_use {
                problem.get_or_insert_with(|| format!("re-exports from {other}"));
            }
            if let Some(problem) = problem {
                found.insert((source.file.clone(), other.clone()));
                why.entry((source.file.clone(), other.clone())).or_insert((problem, named.path.join("::")));
            }
        }
    }
    let allowed: BTreeSet<_> = EXCEPTIONS.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
    let mut message = String::new();
    for key in found.difference(&allowed) {
        let (problem, path) = &why[key];
        writeln!(message, "src/{} uses {path}: {problem}", key.0).unwrap();
    }
    for (file, room) in allowed.difference(&found) {
        writeln!(message, "src/{file} does not use {room} any more: remove the exception").unwrap();
    }
    assert!(message.is_empty(), "{message}");
}

/// The child modules of `parent`, and which of them each uses.
fn uses_between_children(sources: &[Source], parent: &[String]) -> BTreeMap<String, BTreeSet<String>> {
    let child = |path: &[String]| -> Option<String> {
        (path.len() > parent.len() && path.starts_with(parent)).then(|| path[parent.len()].clone())
    };
    let children: BTreeSet<_> = sources.iter().filter_map(|source| child(&source.module)).collect();
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in sources {
        let Some(from) = child(&source.module) else {
            continue;
        };
        // A test may build what it needs with any neighbour.
        let named = source.named.iter().filter(|named| !named.in_test);
        let others = named.filter_map(|named| child(&named.path));
        let others = others.filter(|to| *to != from && children.contains(to));
        uses.entry(from.clone()).or_default().extend(others);
    }
    uses
}

/// The groups of modules that reach each other.
fn circles(uses: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<String> {
    let reach = |from: &String| {
        let mut reached = BTreeSet::new();
        let mut open = vec![from];
        while let Some(next) = open.pop() {
            for to in &uses[next] {
                if reached.insert(to) {
                    open.push(to);
                }
            }
        }
        reached
    };
    let reached: BTreeMap<_, _> = uses.keys().map(|module| (module, reach(module))).collect();
    let in_circle = uses.keys().filter(|module| reached[module].contains(module));
    in_circle
        .map(|module| {
            let group = uses
                .keys()
                .filter(|other| reached[module].contains(other) && reached[other].contains(module));
            group.map(String::as_str).collect::<Vec<_>>().join(", ")
        })
        .collect()
}

#[test]
fn no_modules_side_by_side_import_each_other() {
    let sources = sources();
    let parents: BTreeSet<_> = sources
        .iter()
        .flat_map(|source| (0..source.module.len()).map(|n| source.module[..n].to_vec()))
        .collect();
    let found: BTreeSet<_> = parents
        .iter()
        .flat_map(|parent| {
            let circles = circles(&uses_between_children(&sources, parent));
            circles.into_iter().map(|circle| format!("{}: {circle}", parent.join("::")))
        })
        .collect();
    let allowed: BTreeSet<_> = CIRCLES.iter().map(|circle| (*circle).to_owned()).collect();
    assert_eq!(found, allowed);
}

/// Functions of one file that break a size rule, with the number. Tests apart.
struct Sizes<'c> {
    lines: Vec<&'c str>,
    found: Vec<(String, &'static str, usize)>,
}

impl Sizes<'_> {
    fn of(code: &str) -> Vec<(String, &'static str, usize)> {
        let mut sizes = Sizes { lines: code.lines().collect(), found: Vec::new() };
        sizes.visit_file(&syn::parse_file(code).unwrap());
        sizes.found
    }

    fn check(&mut self, signature: &Signature, block: &Block) {
        let (first, last) = (signature.fn_token.span.start().line, block.brace_token.span.close().end().line);
        let is_code = |line: &&&str| !line.trim().is_empty() && !line.trim().starts_with("//");
        let n_lines = self.lines[first - 1..last].iter().filter(is_code).count();
        let n_parameters = signature.inputs.len();
        let n_tuples = signature.inputs.iter().filter(|input| hides_parameters(input)).count();
        let rules = [
            ("lines", n_lines, MAX_LINES),
            ("parameters", n_parameters, MAX_PARAMETERS),
            ("tuples", n_tuples, 0),
        ];
        for (what, n, _) in rules.into_iter().filter(|(_, n, most)| n > most) {
            self.found.push((signature.ident.to_string(), what, n));
        }
    }
}

/// Whether a parameter is a tuple of parts of several types. Those are parameters; a pair of one type is one thing.
fn hides_parameters(input: &FnArg) -> bool {
    let FnArg::Typed(input) = input else {
        return false;
    };
    let (Pat::Tuple(_), Type::Tuple(tuple)) = (&*input.pat, &*input.ty) else {
        return false;
    };
    let types: BTreeSet<_> = tuple.elems.iter().map(|part| part.span().source_text()).collect();
    types.len() > 1
}

impl<'ast> Visit<'ast> for Sizes<'_> {
    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if item.ident != "tests" {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.check(&item.sig, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.check(&item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }
}

/// Whether code asks which system it is, or names what only one has. Comments and tests do not count.
fn is_of_a_system(code: &str) -> bool {
    let words = ["unix", "windows", "target_os", "target_env"].map(|word| format!("({word}"));
    let things = ["std::os::", "\"/proc", "\"/sys", "\"/dev", "rustix::", "process_group"];
    let lines = code.lines().map(str::trim_start).take_while(|line| !line.starts_with("#[cfg(test)]"));
    let lines = lines.take_while(|line| !line.starts_with("#[cfg(all(test"));
    lines.filter(|line| !line.starts_with("//")).any(|line| {
        let asks = line.contains("cfg") && words.iter().any(|word| line.contains(word));
        asks || things.iter().any(|thing| line.contains(thing))
    })
}

#[test]
fn what_is_of_one_system_is_in_one_module_each() {
    let folders = ["src", "ggml/src"];
    let all = folders.iter().flat_map(|folder| files(folder).into_iter().map(move |file| (folder, file)));
    let found: Vec<String> = all
        .filter(|(_, (_, code))| is_of_a_system(code))
        .map(|(folder, (file, _))| format!("{folder}/{file}"))
        .collect();
    let known: BTreeSet<String> = OF_SYSTEMS.iter().map(|(file, _)| (*file).to_owned()).collect();
    assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), known);
}

#[test]
fn code_of_one_system_is_found() {
    for code in [
        "#[cfg(unix)]\nfn f() {}",
        "if !cfg!(windows) {}",
        "#[cfg(not(target_os = \"linux\"))]\nfn f() {}",
        "#[cfg_attr(unix, path = \"a.rs\")]",
        "use std::os::fd::AsRawFd;",
        "let path = \"/proc/self/fd\";",
    ] {
        assert!(is_of_a_system(code), "{code}");
    }
    for code in ["// #[cfg(unix)]", "fn windows(n: usize) {}", "#[cfg(test)]\nuse std::os::fd::AsRawFd;"] {
        assert!(!is_of_a_system(code), "{code}");
    }
}

#[test]
fn functions_are_small() {
    let mut message = String::new();
    for folder in ["src", "ggml/src"] {
        for (file, code) in files(folder) {
            for (name, what, n) in Sizes::of(&code) {
                writeln!(message, "{folder}/{file}: {name} has {n} {what}").unwrap();
            }
        }
    }
    assert!(message.is_empty(), "too large:\n{message}");
}

#[test]
fn sizes_are_counted_wherever_a_function_stands() {
    let lines = "        // A comment.\n\n        f();\n".repeat(MAX_LINES - 1);
    let code = format!(
        "impl A {{\n    #[must_use]\n    fn long(&self) {{\n{lines}    }}\n}}\n\
         fn short() {{\n{}}}\n\
         fn wide(a: A, b: A, c: A, d: A, e: A, f: A, g: A) {{}}\n\
         fn hides((a, b): (A, &B), (low, high): (f64, f64)) {{}}\n\
         mod tests {{ fn t((a, b): (A, B)) {{}} }}\n",
        &lines[lines.len() / (MAX_LINES - 1)..]
    );
    let found = Sizes::of(&code);
    let expected = [("long", "lines", MAX_LINES + 1), ("wide", "parameters", 7), ("hides", "tuples", 1)];
    assert_eq!(found, expected.map(|(name, what, n)| (name.to_owned(), what, n)));
}

#[test]
fn paths_are_found_wherever_they_stand() {
    let code = "
        use crate::a::{b, c::{self, D}};
        pub use super::e::*;
        fn f() -> crate::g::H { vec![crate::i::j(super::k::L)]; self::m::n::<crate::o::P>() }
        mod tests { use super::super::q; pub(crate) fn r() {} }
    ";
    let mut collector = Collector { module: vec!["x".into(), "y".into()], in_test: false, found: Vec::new() };
    collector.visit_file(&syn::parse_file(code).unwrap());
    let found: Vec<_> = collector.found.iter().map(|named| named.path.join("::")).collect();
    let expected =
        ["a::b", "a::c::self", "a::c::D", "x::e", "g::H", "i::j", "x::k::L", "x::y::m::n", "o::P", "x::q"];
    assert_eq!(found, expected);
    assert!(collector.found[3].is_public_use && !collector.found[0].is_public_use);
}
