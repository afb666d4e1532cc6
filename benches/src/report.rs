//! `benches/REPORT.md`: every bar and every figure, with the machine and the versions, and plots.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;
use crate::bars::Bar;
use crate::run_time::{GENERATORS, Row};

/// What was measured for the report, a file a section, so that a section can be measured anew.
pub(crate) struct Saved(PathBuf);

impl Saved {
    /// In a folder beside a program.
    pub(crate) fn beside(program: PathBuf, scale: usize) -> Result<Self> {
        let folder = program.with_file_name(format!("report-{scale}"));
        fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }

    pub(crate) fn write(&self, section: &str, lines: impl Iterator<Item = String>) -> Result<()> {
        Ok(fs::write(self.0.join(section), lines.collect::<Vec<_>>().join("\n"))?)
    }

    pub(crate) fn read<T>(&self, section: &str, line: impl Fn(&str) -> Result<T>) -> Result<Vec<T>> {
        let text = fs::read_to_string(self.0.join(section));
        let text = text.map_err(|error| format!("{section} has to be measured first: {error}"))?;
        text.lines().map(line).collect()
    }

    /// The day on which a section was measured.
    pub(crate) fn date(&self, section: &str) -> Result<String> {
        told(Command::new("date").args(["--utc", "+%F", "--reference"]).arg(self.0.join(section)))
    }
}

/// A part of the report.
pub(crate) struct Section {
    pub(crate) title: &'static str,
    pub(crate) date: String,
    pub(crate) bars: Vec<Bar>,
}

/// What is reported, in order.
pub(crate) struct Report {
    pub(crate) sections: Vec<Section>,
    pub(crate) run_times: Vec<Row>,
}

/// Why a bar is missed, or what a figure can't tell.
const NOTES: &str = "\
Every figure is from a process of its own. What is compared ran in turns: in each round every subject once, the first one
another in each. Times are medians over 15 rounds (lookups: of the least of three; links, calls and run times: of the least
of several), but of LLVM O2 at 5,000 functions over three, and at 50,000 functions over six, of LLVM O2 one. A ratio of times
is the median of the rounds' ratios, so that it need not be the ratio of the medians beside it. Times depend on what
else the machine did; instructions and memory do not. Orcane and cranelift-jit are in
one program, of the profile `dist`: optimised at link time, in one unit. LLVM is Debian's
`libLLVM-22.so`, a release build, linked as a shared library: its calls into itself go through no PLT, so that code
generation is as fast as with a static library. Loading it is part of one figure alone, the cold start of `lli-22`,
which is that of a whole process: `lli-22 --version` loads it and does nothing else, and what the program takes beyond that
is told beside. LLVM's IR is built with its
`IRBuilder`, ours with Cranelift's `FunctionBuilder`; the programs whose run time is compared are translated from the same
CLIF, block by block. `llvm-o2-scalar` is O2 without its vectorisers: what Cranelift has none of.
Sections can be measured one by one: each says when it was.
";

/// Times of LLVM O2's from which on a program is listed.
const SLOWER: f64 = 1.5;

/// What the machine code shows of programs that may be listed.
const WHY: [(&str, &str); 2] = [
    (
        "fib",
        "Cranelift saves the frame pointer and the registers that a function needs at every entry, and `n < 2` comes after \
         that: with one round of the recursion taken in, for two calls of three no longer. LLVM tests first, and saves \
         only where it calls; its O2 makes a loop of the second call as well.",
    ),
    (
        "spectral-norm",
        "An element of the matrix is a call of another function, across which no vector register is kept. With inlining \
         (`InlineSmallFunctions`) the inner loop calls nobody.",
    ),
];

/// The plots beside that of run times: file, title, section, and how the names of its figures begin and end.
const PLOTS: [(&str, &str, &str, &str, &str); 6] = [
    ("compile.svg", "Microseconds to compile a function", COMPILATION, "us a function: ", ""),
    ("sizes.svg", "Microseconds to build and compile a function", SIZES, "", ": us a function"),
    ("memory.svg", "Peak memory, MB", SIZES, "", ": peak MB above an empty process"),
    ("calls.svg", "Lazy functions, nanoseconds", LAZY, "", ", ns"),
    ("lookup.svg", "A million symbols, nanoseconds", SYMBOLS, "a million symbols, ", ", ns"),
    ("link.svg", "Microseconds to link", LINKING, "link ", ": us"),
];

/// Titles of sections of which there are plots.
pub(crate) const COMPILATION: &str = "Compilation beside LLVM";
pub(crate) const SIZES: &str = "Eager compilation by size";
pub(crate) const LAZY: &str = "Lazy compilation and calls";
pub(crate) const LINKING: &str = "Linking";
pub(crate) const SYMBOLS: &str = "A million symbols";

impl Report {
    /// Writes the report, and the plots beside it.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let mut text = String::from("# Benchmarks\n\nWritten by `scripts/bench report`.\n\n");
        writeln!(text, "{}\n{NOTES}", machine()?)?;
        for Section { title, date, bars } in &self.sections {
            writeln!(text, "## {title}\n\nMeasured on {date}.\n\n| | measured | promised | |\n|---|---:|---:|---|")?;
            for bar in bars {
                let (promised, verdict) = bar.promise();
                writeln!(text, "| {} | {} | {promised} | {verdict} |", bar.what(), bar.figure())?;
            }
            text.push('\n');
        }
        writeln!(text, "## Run time of compiled code, in microseconds\n")?;
        let names: Vec<_> = GENERATORS.iter().map(|(_, name)| *name).collect();
        writeln!(text, "| | {} |\n|---|{}", names.join(" | "), "---:|".repeat(names.len()))?;
        for row in &self.run_times {
            let times: Vec<_> = row.microseconds().map(|time| format!("{time:.0}")).collect();
            writeln!(text, "| {} | {} |", row.program, times.join(" | "))?;
        }
        text.push_str(&self.slower()?);
        text.push_str("\n![Run time beside LLVM's default code generation](run-time.svg)\n");
        fs::write(folder.join("run-time.svg"), self.run_time_plot())?;
        for (file, title, section, begins, ends) in PLOTS {
            writeln!(text, "\n![{title}]({file})")?;
            fs::write(folder.join(file), plot(title, &self.figures(section, begins, ends)))?;
        }
        fs::write(folder.join("REPORT.md"), text)?;
        Ok(())
    }

    /// The figures of a section whose names begin and end so, by what stands between.
    fn figures(&self, section: &str, begins: &str, ends: &str) -> Vec<(String, f64)> {
        let bars = self.sections.iter().filter(|known| known.title == section).flat_map(|known| &known.bars);
        let named = bars
            .filter_map(|bar| Some((bar.what().strip_prefix(begins)?.strip_suffix(ends)?.to_owned(), bar.measured())));
        named.collect()
    }

    /// The programs that take half as long again as LLVM's best, or more, and why.
    fn slower(&self) -> Result<String> {
        let mut text = format!("\nAt `speed`, beyond {SLOWER} of LLVM O2:\n\n");
        let ratios = self.run_times.iter().map(|row| (row.program, row.ratio("orcane-speed", "llvm-o2")));
        for (program, ratio) in ratios.filter(|(_, ratio)| *ratio > SLOWER) {
            let why = WHY.iter().find(|(of, _)| *of == program);
            let (_, why) =
                why.ok_or_else(|| format!("why {program} takes {ratio:.2} of LLVM O2's time is to be said"))?;
            text += &format!("- {program}, {ratio:.2}. {why}\n");
        }
        Ok(text)
    }

    fn run_time_plot(&self) -> String {
        let ratios = self.run_times.iter().flat_map(|row| {
            let ratio = |generator| row.ratio(generator, "llvm-default");
            [("Orcane, speed", "orcane-speed"), ("LLVM O0", "llvm-o0"), ("LLVM O2", "llvm-o2")]
                .map(|(label, generator)| (format!("{}: {label}", row.program), ratio(generator)))
        });
        plot("Run time / that of LLVM's default code generation", &ratios.collect::<Vec<_>>())
    }
}

/// A bar for each value, as SVG. What is Orcane's has another colour.
fn plot(title: &str, values: &[(String, f64)]) -> String {
    const LABELS: f64 = 300.0;
    const WIDTH: f64 = 460.0;
    const ROW: f64 = 20.0;
    let most = values.iter().map(|(_, value)| *value).fold(0.0, f64::max);
    let height = ROW * (values.len() as f64 + 2.0);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"16\" font-weight=\"bold\">{title}</text>\n",
        LABELS + WIDTH + 90.0
    );
    for (row, (label, value)) in values.iter().enumerate() {
        let top = ROW * (row as f64 + 1.5);
        let baseline = top + 12.0;
        let width = value / most * WIDTH;
        let colour = if label.contains("Orcane") { "#c0392b" } else { "#7f8c8d" };
        text += &format!(
            "<text x=\"{}\" y=\"{baseline}\" text-anchor=\"end\">{label}</text>\n\
             <rect x=\"{LABELS}\" y=\"{top}\" width=\"{width:.1}\" height=\"15\" fill=\"{colour}\"/>\n\
             <text x=\"{:.1}\" y=\"{baseline}\">{value:.2}</text>\n",
            LABELS - 8.0,
            LABELS + width + 6.0
        );
    }
    text += "</svg>\n";
    text
}

fn machine() -> Result<String> {
    let processors = fs::read_to_string("/proc/cpuinfo")?;
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    let model = model.trim_start_matches([' ', '\t', ':']);
    let cores = std::thread::available_parallelism()?;
    let version = |program: &str, argument: &str| told(Command::new(program).arg(argument));
    Ok(format!(
        "{model}, {cores} threads, {}. Orcane {}, Cranelift {}, LLVM {}, {}.\n",
        version("uname", "-sr")?,
        env!("CARGO_PKG_VERSION"),
        cranelift_codegen::VERSION,
        version("llvm-config-22", "--version")?,
        version("rustc", "--version")?,
    ))
}

/// The first line that a command prints.
fn told(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
}
