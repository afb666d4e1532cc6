//! The guide and the other pages agree with each other and with the code, beside what they have as documentation tests.

mod orc;
#[cfg(feature = "programs")]
#[path = "../toolchain/mod.rs"]
#[allow(dead_code, reason = "each test uses a part")]
mod toolchain;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The files of a directory with an extension, with the directory before their names.
fn files(directory: &str, extension: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(root().join(directory)).unwrap().map(|entry| entry.unwrap().path());
    let names = entries.filter(|path| path.extension().is_some_and(|other| other == extension));
    names.map(|path| format!("{directory}/{}", path.file_name().unwrap().to_str().unwrap())).collect()
}

/// All pages of the repository, by path.
fn pages() -> Vec<String> {
    let others = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"].map(str::to_owned);
    let crates = ["jit-linker", "jit-core", "jit-lazy", "toy-lang"].map(|name| format!("{name}/README.md"));
    others.into_iter().chain(crates).chain(files("docs", "md")).collect()
}

/// A block of code: its language, and its lines.
struct Block {
    language: String,
    lines: Vec<String>,
}

/// A page without its blocks of code, and the blocks.
fn taken_apart(page: &str) -> (String, Vec<Block>) {
    let (mut prose, mut blocks, mut inside) = (String::new(), Vec::<Block>::new(), false);
    for line in read(page).lines() {
        match line.trim_start().strip_prefix("```") {
            Some(_) if inside => inside = false,
            Some(language) => {
                inside = true;
                blocks.push(Block { language: language.to_owned(), lines: Vec::new() });
            }
            None if inside => blocks.last_mut().unwrap().lines.push(line.to_owned()),
            None => prose = prose + line + "\n",
        }
    }
    assert!(!inside, "{page}: a block of code does not end");
    (prose, blocks)
}

/// What stands between two marks, each time.
fn between<'t>(text: &'t str, open: &str, close: &str) -> Vec<&'t str> {
    text.split(open).skip(1).filter_map(|rest| Some(rest.split_once(close)?.0)).collect()
}

/// What is set as code in prose: it may go over the end of a line.
fn code_in(prose: &str) -> Vec<&str> {
    prose.split('`').skip(1).step_by(2).collect()
}

#[test]
fn the_lists_of_chapters_agree() {
    let summary = read("docs/SUMMARY.md");
    let listed = between(&summary, "](", ")");
    let guide = read("src/guide.rs");
    let (_, tested) = guide.split_once("chapters! {").unwrap();
    assert_eq!(between(tested, " \"", "\","), listed, "`src/guide.rs` beside `docs/SUMMARY.md`");
    let listed: BTreeSet<_> = listed.iter().map(|page| format!("docs/{page}")).collect();
    let mut there = files("docs", "md");
    there.remove("docs/SUMMARY.md");
    assert_eq!(listed, there, "`docs/SUMMARY.md` beside `docs/`");
}

/// The anchor that a heading is given.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|char| char.is_alphanumeric() || matches!(char, ' ' | '-' | '_'));
    kept.map(|char| if char == ' ' { '-' } else { char.to_ascii_lowercase() }).collect()
}

#[test]
fn links_lead_somewhere() {
    let mut seen = 0;
    for page in pages() {
        let (prose, _) = taken_apart(&page);
        for link in between(&prose, "](", ")").into_iter().filter(|link| !link.contains("://")) {
            let (path, place) = link.split_once('#').unwrap_or((link, ""));
            let target =
                if path.is_empty() { root().join(&page) } else { root().join(&page).with_file_name("").join(path) };
            assert!(target.exists(), "{page}: nothing at {link}");
            let headings = std::fs::read_to_string(&target).unwrap_or_default();
            let mut headings = headings.lines().filter(|line| line.starts_with('#'));
            let is_there = headings.any(|line| anchor(line.trim_start_matches('#').trim()) == place);
            assert!(place.is_empty() || is_there, "{page}: no heading for {link}");
            seen += 1;
        }
    }
    assert!(seen > 20, "only {seen} links were found");
}

#[test]
fn paths_in_prose_exist() {
    // Where the paths of a page may begin.
    let beginnings = |page: &str| match page {
        "docs/architecture.md" => vec![
            "",
            "jit-linker/src",
            "jit-core/src",
            "jit-core/src/session",
            "jit-core/src/platform",
            "jit-core",
            "jit-lazy/src",
        ],
        "toy-lang/README.md" => vec!["toy-lang"],
        _ => vec![""],
    };
    // What programs write.
    let written = ["benches/REPORT.md", "target/criterion", "target/release/kaleidoscope"];
    let mut seen = 0;
    for page in pages() {
        let (prose, _) = taken_apart(&page);
        let is_path = |code: &&str| {
            let is_plain =
                code.chars().all(|char| char.is_ascii_alphanumeric() || matches!(char, '/' | '.' | '_' | '-'));
            is_plain && (code.contains('/') || code.ends_with(".rs") || code.ends_with(".md"))
        };
        for path in code_in(&prose).into_iter().filter(is_path).filter(|path| !written.contains(path)) {
            let found = beginnings(&page).iter().any(|from| root().join(from).join(path).exists());
            assert!(found, "{page}: there is no {path}");
            seen += 1;
        }
    }
    assert!(seen > 40, "only {seen} paths were found");
}

/// Every Rust source of the libraries.
fn sources() -> String {
    fn add(directory: PathBuf, text: &mut String) {
        for entry in std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                add(entry, text);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                *text += &std::fs::read_to_string(entry).unwrap();
            }
        }
    }
    let mut text = String::new();
    for directory in ["src", "jit-linker/src", "jit-core/src", "jit-lazy/src"] {
        add(root().join(directory), &mut text);
    }
    text
}

/// `Type::name` and `value.name(…)` in prose are items, methods or variants of ours.
#[test]
fn names_in_prose_exist() {
    // Of others, which the pages speak of.
    let others = [
        "ObjectLinkingLayer::Plugin",
        "FunctionBuilder::set_srcloc",
        "JITBuilder::new",
        "JITModule::new",
        "builder.symbol",
        "builder.symbol_lookup_fn",
        "module.finalize_definitions",
        "module.get_finalized_function",
        "module.free_memory",
        "cranelift_module::Module",
        "std::backtrace",
        "std::fs::read",
        "Linkage::Import",
    ];
    let sources = sources();
    let is_word = |char: char| char.is_alphanumeric() || char == '_';
    let words: BTreeSet<_> = sources.split(|char| !is_word(char)).collect();
    let mut defined = BTreeSet::new();
    for keyword in
        ["fn ", "struct ", "enum ", "trait ", "type ", "mod ", "const ", "jit_linker as ", "jit_lazy as ", "pub "]
    {
        defined.extend(sources.split(keyword).skip(1).map(|rest| rest.split(|char| !is_word(char)).next().unwrap()));
    }
    let mut seen = 0;
    for page in pages() {
        let (prose, _) = taken_apart(&page);
        for code in code_in(&prose) {
            let path = code.split(['(', '<']).next().unwrap().trim_end_matches("::");
            let is_path = path.contains("::") || code.contains('(') && path.contains('.');
            let is_plain = path.chars().all(|char| is_word(char) || matches!(char, ':' | '.'));
            if !is_path || !is_plain || others.contains(&path) || path.ends_with(".rs") {
                continue;
            }
            let mut parts: Vec<_> =
                path.split([':', '.']).filter(|part| !part.is_empty() && *part != "orcane").collect();
            let name = parts.pop().unwrap_or_default();
            // A variant has no keyword before it.
            let is_variant = name.starts_with(char::is_uppercase) && words.contains(name);
            assert!(defined.contains(name) || is_variant, "{page}: `{code}`: there is no `{name}`");
            for part in parts.into_iter().filter(|part| part.starts_with(char::is_uppercase)) {
                assert!(defined.contains(part), "{page}: `{code}`: there is no `{part}`");
            }
            seen += 1;
        }
    }
    assert!(seen > 30, "only {seen} names were found");
}

/// The names of ours in the table from ORC's concepts are those that are compiled in `orc.rs`.
#[test]
fn the_names_beside_orcs_are_compiled() {
    let compiled = include_str!("orc.rs");
    let is_word = |char: char| char.is_alphanumeric() || char == '_';
    let words: BTreeSet<_> = compiled.split(|char| !is_word(char)).collect();
    let page = read("docs/orc.md");
    let (page, _) = page.split_once("What there is not:").unwrap();
    let mut seen = 0;
    for line in page.lines().filter(|line| line.starts_with("| `") || line.starts_with("| ")) {
        let ours = line.split('|').nth(2).unwrap();
        // Where it is said to be the same, the names are those of the first column: in our spelling, where they are functions.
        let theirs = line.split('|').nth(1).unwrap();
        let columns = if ours.contains("the same") { [theirs, ours] } else { ["", ours] };
        for name in columns.into_iter().flat_map(code_in).flat_map(|code| code.split("::")) {
            assert!(words.contains(name), "docs/orc.md: `{name}` is not in tests/guide/orc.rs");
            seen += 1;
        }
    }
    assert!(seen > 80, "only {seen} names were found");
}

/// What a crate's root re-exports, by `pub use` and as public modules.
fn exported(source: &str) -> BTreeSet<&str> {
    let names = |item: &'static str| source.split(item).skip(1);
    let modules = names("\npub mod ").map(|rest| rest.split([';', ' ']).next().unwrap());
    let uses = names("\npub use ").map(|rest| rest.split_once(';').unwrap().0);
    let uses = uses.flat_map(|path| path.rsplit("::").next().unwrap().split(['{', '}', ',', ' ', '\n']));
    modules.chain(uses).filter(|name| !name.is_empty()).collect()
}

#[test]
fn the_facade_has_all_of_the_session_but_its_seam() {
    let [facade, session] = ["src/lib.rs", "jit-core/src/lib.rs"].map(read);
    let mut of_session = exported(&session);
    assert!(of_session.remove("seam") && of_session.len() > 100, "{of_session:?}");
    let mut of_facade = exported(&facade);
    for other in ["jit_linker", "as", "linker", "jit_lazy", "lazy"] {
        of_facade.remove(other);
    }
    assert_eq!(of_facade, of_session, "`src/lib.rs` beside `jit-core/src/lib.rs`");
}

/// Blocks of code that no test runs, by page and first line, each with the reason.
const NOT_RUN: [(&str, &str, &str); 4] = [
    ("README.md", "your language         CLIF, machine code, or a representation of your own", "a drawing"),
    (
        "docs/architecture.md",
        "ClifModule  --add-->  one unit a function or data object, waiting in a dylib",
        "a drawing",
    ),
    ("README.md", "[dependencies]", "what this repository is to another; its path is the reader's"),
    ("docs/introduction.md", "[dependencies]", "as in the README"),
];

#[test]
fn every_block_is_run_or_has_a_reason() {
    let mut excused = BTreeSet::new();
    for page in pages() {
        for block in taken_apart(&page).1 {
            let first = block.lines.first().map_or("", String::as_str);
            match block.language.as_str() {
                // A documentation test, of the guide or of the crate; `ignore`, `no_run` and such would stand behind.
                "rust" if page.starts_with("docs/") || page == "README.md" => {}
                "sh" => _ = commands(&block),
                "text" if block.lines.iter().any(|line| line.starts_with("$ ")) => _ = commands(&block),
                "toml" if !block.lines.iter().any(|line| line == "[dependencies]") => {
                    let manifest = read("Cargo.toml");
                    assert!(
                        block.lines.iter().all(|line| manifest.contains(line)),
                        "{page}: Cargo.toml has it otherwise"
                    );
                }
                _ => {
                    let reason = NOT_RUN.iter().find(|(of, line, _)| *of == page && *line == first);
                    let Some(reason) = reason else { panic!("{page}: nothing runs the block that begins '{first}'") };
                    excused.insert(reason);
                }
            }
        }
    }
    assert_eq!(excused.len(), NOT_RUN.len(), "only these need an excuse: {excused:?}");
}

/// What a command of a page comes to.
#[cfg_attr(not(feature = "programs"), allow(dead_code, reason = "they are run with the feature"))]
#[derive(Debug, PartialEq)]
enum Said {
    /// Arguments of `orcane`.
    Orcane(Vec<String>),
    /// Arguments of `kaleidoscope`.
    Kaleidoscope(Vec<String>),
    /// It is a tool of others, or of Cargo's.
    Other,
}

/// The commands of a block. It fails if one is none that is known.
fn commands(block: &Block) -> Vec<Said> {
    let is_session = block.language == "text";
    let lines = block.lines.iter().map(|line| line.split('#').next().unwrap().trim()).filter(|line| !line.is_empty());
    lines.filter_map(|line| if is_session { line.strip_prefix("$ ") } else { Some(line) }).map(command).collect()
}

fn command(line: &str) -> Said {
    let words: Vec<_> = line.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect();
    let after = |mark: &str| words.iter().skip_while(|word| *word != mark).skip(1).cloned().collect::<Vec<_>>();
    let is = |beginning: &str| line.starts_with(beginning);
    match words[0].as_str() {
        "orcane" => Said::Orcane(words[1..].to_vec()),
        "kaleidoscope" | "target/release/kaleidoscope" => Said::Kaleidoscope(words[1..].to_vec()),
        // Debuggers are in tests of their own; what they are given to run is run here.
        "gdb" => command(&after("--args").join(" ")),
        "lldb" => command(&after("--").join(" ")),
        "cargo" if is("cargo run --release -p toy-lang -- ") => Said::Kaleidoscope(after("--")),
        "cargo" if is("cargo run --release -p orcane --features cli -- ") => Said::Orcane(after("--")),
        "cargo" if ["install", "build"].contains(&words[1].as_str()) => {
            let path = words.iter().skip_while(|word| *word != "--path").nth(1).map_or("toy-lang", String::as_str);
            assert!(root().join(path).join("Cargo.toml").exists(), "{line}");
            Said::Other
        }
        "cargo" if ["test", "semver-checks"].contains(&words[1].as_str()) => Said::Other,
        // `perf` samples hardware that a test can't count on. What it reads is parsed by tests of the session.
        "perf" | "ORCANE_PROFILER=jitdump" => Said::Other,
        script if script.starts_with("scripts/") => {
            assert!(root().join(script).exists(), "there is no {script}");
            Said::Other
        }
        _ => panic!("who runs `{line}`?"),
    }
}

#[cfg(feature = "programs")]
mod run {
    //! The commands of the pages, run.

    use std::process::Command;

    use super::{Said, commands, pages, root, taken_apart, toolchain};

    const PROGRAM: &str = "#include <stdio.h>
        int main(int count, char **words) { printf(\"%d\\n\", count); return 0; }";

    #[test]
    fn commands_of_the_pages_run() {
        let directory = toolchain::directory("guide");
        for name in ["program.c", "main.c"] {
            toolchain::compile(&directory, &[toolchain::GCC], name, PROGRAM);
        }
        std::fs::copy(root().join("toy-lang/examples/gcd.ks"), directory.join("program.ks")).unwrap();
        let orcane = env!("CARGO_BIN_EXE_orcane");
        let kaleidoscope = std::path::Path::new(orcane).with_file_name("kaleidoscope");
        assert!(kaleidoscope.exists(), "{}: `cargo build -p toy-lang` makes it", kaleidoscope.display());
        let mut seen = 0;
        for page in pages() {
            let blocks =
                taken_apart(&page).1.into_iter().filter(|block| ["sh", "text"].contains(&block.language.as_str()));
            for said in blocks.flat_map(|block| commands(&block)) {
                let (program, arguments) = match said {
                    Said::Orcane(arguments) => (orcane.to_owned(), arguments),
                    Said::Kaleidoscope(arguments) => (kaleidoscope.display().to_string(), arguments),
                    Said::Other => continue,
                };
                // Where the files are that it speaks of.
                let from_root = arguments.iter().any(|word| word.contains('/'));
                let mut words = toolchain::runner();
                words.push(program);
                let mut command = Command::new(&words[0]);
                command.args(&words[1..]).args(&arguments).stdin(std::process::Stdio::null());
                let output = command.current_dir(if from_root { root() } else { &directory }).output().unwrap();
                assert!(output.status.success(), "{page}: {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
                seen += 1;
            }
        }
        assert!(seen >= 8, "only {seen} commands were found");
    }
}
