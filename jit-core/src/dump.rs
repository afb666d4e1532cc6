//! What becomes of a symbol on its way into memory, to be looked at.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::{fs, io};

use jit_linker::LinkGraph;
use jit_linker::graph::Definition;

use crate::object::{Link, LinkPlugin};
use crate::sync::Arc;

/// What a symbol is at a station of its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Form {
    /// The function's CLIF as it goes to the compiler, after all transforms.
    Clif,
    /// What Cranelift made of it, in its own notation of instructions.
    Assembly,
    /// Its block of the link graph, with the symbols and edges there: text.
    Graph,
    /// An ELF object of the linked function at its address: code, symbol, lines and variables, for any disassembler.
    Object,
}

impl Form {
    /// All of them, in the order in which a function comes by them.
    pub const ALL: [Self; 4] = [Self::Clif, Self::Assembly, Self::Graph, Self::Object];

    /// What files that hold it end in.
    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            Self::Clif => "clif",
            Self::Assembly => "s",
            Self::Graph => "graph",
            Self::Object => "o",
        }
    }
}

/// Is shown what becomes of symbols: see [`JitBuilder::dumps`](crate::JitBuilder::dumps).
///
/// Calls come from any thread that compiles or links, several at a time, with no lock held. A symbol that is made again
/// (by a later tier, or after it was removed) is shown again.
///
/// ```
/// use std::sync::{Arc, Mutex};
///
/// use jit_core::{DumpSink, Form, Jit};
///
/// /// Keeps the assembly of every function.
/// #[derive(Default)]
/// struct Assembly(Mutex<Vec<String>>);
///
/// impl DumpSink for Assembly {
///     fn wants(&self, _: &str, form: Form) -> bool {
///         form == Form::Assembly
///     }
///
///     fn dump(&self, symbol: &str, _: Form, content: &[u8]) {
///         self.0.lock().unwrap().push(format!("{symbol}:\n{}", String::from_utf8_lossy(content)));
///     }
/// }
///
/// let assembly = Arc::new(Assembly::default());
/// let jit = Jit::builder().dumps(assembly.clone()).build()?;
/// jit.define_closure("double", |n: i64| 2 * n)?;
/// jit.lookup_address("double")?;
/// assert!(assembly.0.lock().unwrap()[0].contains("ret"));
/// # Ok::<(), jit_core::Error>(())
/// ```
pub trait DumpSink: Send + Sync {
    /// Whether a form of a symbol is wanted. One that is not is not made.
    fn wants(&self, symbol: &str, form: Form) -> bool;

    /// Is shown a form of a symbol: bytes of an object, otherwise text.
    fn dump(&self, symbol: &str, form: Form, content: &[u8]);
}

/// Writes a file for each form of each symbol: `SYMBOL.clif`, `SYMBOL.s`, `SYMBOL.graph`, `SYMBOL.o`. The newest stays.
///
/// Bytes of names that file names had better not have are written as `%` and two hexadecimal digits. What can't be
/// written is told to `tracing`, as a warning.
///
/// ```
/// use std::sync::Arc;
///
/// use jit_core::{DumpDirectory, Form, Jit};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let path = std::env::temp_dir().join(format!("dumps-{}", std::process::id()));
/// let dumps = Arc::new(DumpDirectory::new(&path)?.forms(&[Form::Clif, Form::Assembly]));
/// let jit = Jit::builder().dumps(dumps.clone()).build()?;
/// jit.define_closure("double", |n: i64| 2 * n)?;
/// jit.lookup_address("double")?;
/// assert!(std::fs::read_to_string(dumps.file("double", Form::Clif))?.contains("call_indirect"));
/// # std::fs::remove_dir_all(path)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct DumpDirectory {
    path: PathBuf,
    forms: Vec<Form>,
}

impl DumpDirectory {
    /// Writes all forms to a directory, which is made if it is not there.
    ///
    /// # Errors
    ///
    /// When it can't be made.
    pub fn new(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        fs::create_dir_all(&path)?;
        Ok(Self { path, forms: Form::ALL.to_vec() })
    }

    /// Writes only some.
    #[must_use]
    pub fn forms(mut self, forms: &[Form]) -> Self {
        self.forms = forms.to_vec();
        self
    }

    /// Where a form of a symbol is written to.
    #[must_use]
    pub fn file(&self, symbol: &str, form: Form) -> PathBuf {
        /// Of the 255 bytes that file systems allow, some are for the extension.
        const LONGEST: usize = 240;
        let mut name = String::new();
        for byte in symbol.bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'$') || byte == b'.' && !name.is_empty() {
                name.push(byte.into());
            } else {
                _ = write!(name, "%{byte:02x}");
            }
        }
        if name.len() > LONGEST {
            // Its hash tells it from others that begin so.
            let hash = symbol.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
            });
            name.truncate(LONGEST - 17);
            _ = write!(name, "%{hash:016x}");
        }
        self.path.join(format!("{name}.{}", form.extension()))
    }
}

impl DumpSink for DumpDirectory {
    fn wants(&self, _: &str, form: Form) -> bool {
        self.forms.contains(&form)
    }

    fn dump(&self, symbol: &str, form: Form, content: &[u8]) {
        let file = self.file(symbol, form);
        if let Err(error) = fs::write(&file, content) {
            tracing::warn!(symbol, file = %file.display(), %error, "a dump was not written");
        }
    }
}

/// Shows a sink the link graph of each symbol.
pub(crate) struct GraphDumps(pub(crate) Arc<dyn DumpSink>);

impl LinkPlugin for GraphDumps {
    fn loaded(&self, _: &Link, graph: &LinkGraph) {
        show_graph(&*self.0, graph);
    }
}

/// Shows a sink what a graph has of each symbol that it defines.
pub(crate) fn show_graph(sink: &dyn DumpSink, graph: &LinkGraph) {
    for (id, symbol) in graph.symbols() {
        if matches!(symbol.definition, Definition::Block { .. })
            && let Some(name) = graph.symbol_name(id)
            && sink.wants(name, Form::Graph)
        {
            sink.dump(name, Form::Graph, graph.excerpt(id).to_string().as_bytes());
        }
    }
}
