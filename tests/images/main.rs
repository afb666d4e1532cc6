//! Same objects, same images: random objects linked by Orcane, by LLVM's ORC and by lld.
//!
//! Objects come from `cranelift-object`, from the assembler, and from C that csmith writes. As programs they print the
//! same, whoever links them. At one base address every fixup leads to the same target in the image that `orcane link`
//! dumps and in lld's, through stubs and entries of the GOT. `ORCANE_OBJECTS` says how many objects of each kind are tried
//! and `ORCANE_SEED` which; the seed is printed. What fails stays in its folder, which the failure names.
#![cfg(all(feature = "programs", target_arch = "x86_64"))]

mod assembler;
mod assembler_aarch64;
#[path = "../llvm/tests/programs/choices.rs"]
mod choices;
mod clif;
mod decode;
#[allow(dead_code, reason = "the other tests of random functions use all of it")]
#[path = "../random_clif/generate.rs"]
mod generate;
mod image;
#[path = "../random_clif/operations.rs"]
mod operations;
#[path = "../random_clif/recursion.rs"]
mod recursion;
mod thread_local;
#[allow(dead_code, reason = "each test uses a part")]
#[path = "../toolchain/mod.rs"]
mod toolchain;

use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use image::{Image, Linked};
use object::{Object, ObjectSection};
use proptest::collection::vec;
use proptest::prelude::any;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use toolchain::{compile, directory, orcane, told, tool};

/// Seconds that a program may take: csmith's need not end.
const PATIENCE: &str = "3";

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

fn count_and_seed() -> (u64, u64) {
    let (count, seed) = (setting("ORCANE_OBJECTS", 30), setting("ORCANE_SEED", 1));
    println!("{count} objects of a kind, ORCANE_SEED={seed}");
    (count, seed)
}

/// Bytes for the decisions of each of several objects.
fn decisions(count: u64, seed: u64) -> impl Iterator<Item = Vec<u8>> {
    let mut seed_bytes = [0; 32];
    seed_bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &seed_bytes));
    (0..count).map(move |_| vec(any::<u8>(), 0..1_500).new_tree(&mut runner).unwrap().current())
}

/// How many fixups of each kind were compared.
type Kinds = HashMap<u32, usize>;

/// Links files at one base, and compares what their fixups lead to.
fn same_targets(directory: &Path, files: &[&str]) -> Kinds {
    same_targets_as(Some(Linked::Program), directory, files)
}

/// As [`same_targets`]; what lld can't link is only decoded in our image.
fn same_targets_as(linked: Option<Linked>, directory: &Path, files: &[&str]) -> Kinds {
    let bytes: Vec<_> = files.iter().map(|file| std::fs::read(directory.join(file)).unwrap()).collect();
    let objects: Vec<_> = bytes.iter().map(|bytes| object::File::parse(&**bytes).unwrap()).collect();
    let ours = Image::ours(directory, files, &objects);
    let lld = linked.map(|linked| Image::lld(directory, files, &objects, linked));
    let images: Vec<_> = [&ours].into_iter().chain(&lld).collect();
    decode::compare(&objects, &images)
        .unwrap_or_else(|error| panic!("{} in {}: {error}", files.join(" "), directory.display()))
}

/// Runs a program with a limit on its time.
fn run(directory: &Path, words: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.arg(PATIENCE).args(words).current_dir(directory).stdin(Stdio::null());
    command.output().unwrap_or_else(|error| panic!("{words:?}: {error}"))
}

/// Runs a program as the system, Orcane and LLVM link it, the last if it can; whether it came to an end.
fn same_output(directory: &Path, files: &[&str], llvm_can: bool) -> bool {
    tool(
        directory,
        &[&["clang-22", "--ld-path=/usr/bin/ld.lld-22", "-no-pie", "-o", "native"], files, &["-lm"]].concat(),
    );
    let native = told(&run(directory, &["./native"]));
    if native.2 == Some(124) {
        return false;
    }
    let place = directory.display();
    assert!(native.2 == Some(0) && !native.0.is_empty(), "{place}: {native:?}");
    assert_eq!(told(&orcane(directory, &[&["run"], files].concat())), native, "{files:?} in {place}, by Orcane");
    if llvm_can {
        let llvm = told(&run(directory, &[&["llvm-jitlink-22"], files].concat()));
        assert_eq!((llvm.0, llvm.2), (native.0, native.2), "{files:?} in {place}, by LLVM: {}", llvm.1);
    }
    true
}

fn add(all: &mut Kinds, kinds: Kinds) {
    for (kind, count) in kinds {
        *all.entry(kind).or_default() += count;
    }
}

/// The kinds of fixup that were compared are those that are expected, or more.
fn covers(kinds: &Kinds, expected: &[u32]) {
    let missing: Vec<_> = expected.iter().filter(|kind| !kinds.contains_key(kind)).collect();
    assert!(missing.is_empty(), "none of the kinds {missing:?} in {kinds:?}");
}

/// Half of the programs.
fn c_of_csmith(compiler: &str, expected: &[u32]) {
    let (count, seed) = count_and_seed();
    let directory = directory(&format!("csmith-{compiler}"));
    let mut kinds = Kinds::new();
    let mut ended = 0;
    let count = count.div_ceil(2);
    for number in 0..count {
        let seed = seed.wrapping_mul(1_000_003).wrapping_add(number).to_string();
        tool(&directory, &["csmith", "--seed", &seed, "--max-funcs", "6", "-o", "random.c"]);
        let text = std::fs::read_to_string(directory.join("random.c")).unwrap();
        // LLVM's linker does not know the large model's offsets of stubs.
        let (model, llvm_can): (&[&str], _) = match number % 5 {
            0 => (&["-fPIC", "-mcmodel=large"], false),
            1 => (&["-fPIC"], true),
            2 => (&["-fPIE"], true),
            3 => (&["-fPIC", "-ffunction-sections", "-fdata-sections", "-fno-plt"], true),
            _ => (&["-fPIC", "-mcmodel=medium"], true),
        };
        for level in ["-O0", "-O2"] {
            let command = [&[compiler, "-w", "-isystem", "/usr/include/csmith", level], model].concat();
            let object = compile(&directory, &command, "random.c", &text);
            add(&mut kinds, same_targets(&directory, &[&object]));
            ended += u64::from(same_output(&directory, &[&object], llvm_can));
        }
    }
    println!("{ended} of {} programs came to an end; fixups by kind: {kinds:?}", 2 * count);
    assert!(ended >= count, "{ended} of {} programs came to an end", 2 * count);
    covers(&kinds, expected);
}

#[test]
fn c_of_csmith_by_gcc() {
    use object::elf::*;
    c_of_csmith("gcc", &[R_X86_64_64, R_X86_64_PC32, R_X86_64_PLT32, R_X86_64_GOTPCRELX, R_X86_64_GOTOFF64]);
}

#[test]
fn c_of_csmith_by_clang() {
    use object::elf::*;
    c_of_csmith("clang-22", &[R_X86_64_64, R_X86_64_PC32, R_X86_64_PLT32, R_X86_64_REX_GOTPCRELX, R_X86_64_GOTPC64]);
}

/// Linked here, for a machine that this one is not.
#[test]
fn c_of_csmith_for_aarch64() {
    use object::elf::*;
    let (count, seed) = count_and_seed();
    let directory = directory("csmith-aarch64");
    let mut kinds = Kinds::new();
    for number in 0..count.div_ceil(2) {
        let seed = seed.wrapping_mul(1_000_033).wrapping_add(number).to_string();
        tool(&directory, &["csmith", "--seed", &seed, "--max-funcs", "6", "-o", "random.c"]);
        let text = std::fs::read_to_string(directory.join("random.c")).unwrap();
        let models: [&[&str]; 3] = [&["-fPIC"], &["-fPIE", "-ffunction-sections"], &["-fPIC", "-fno-plt"]];
        for level in ["-O0", "-O2"] {
            let command = ["clang-22", "--target=aarch64-linux-gnu", "-w", "-isystem", "/usr/include/csmith", level];
            let command = [&command, models[number as usize % 3]].concat();
            let object = compile(&directory, &command, "random.c", &text);
            add(&mut kinds, same_targets(&directory, &[&object]));
        }
    }
    println!("fixups by kind: {kinds:?}");
    covers(
        &kinds,
        &[
            R_AARCH64_ABS64,
            R_AARCH64_PREL32,
            R_AARCH64_ADR_PREL_PG_HI21,
            R_AARCH64_ADD_ABS_LO12_NC,
            R_AARCH64_LDST32_ABS_LO12_NC,
            R_AARCH64_CALL26,
            R_AARCH64_ADR_GOT_PAGE,
            R_AARCH64_LD64_GOT_LO12_NC,
        ],
    );
}

#[test]
fn functions_of_cranelift() {
    use object::elf::*;
    let (count, seed) = count_and_seed();
    let directory = directory("cranelift");
    let main = compile(
        &directory,
        &["gcc", "-O1", "-fPIE"],
        "main.c",
        "#include <stdio.h>\nunsigned long run(void);\nint main(void) { printf(\"%lx\\n\", run()); return 0; }\n",
    );
    let mut kinds = Kinds::new();
    for bytes in decisions(count, seed) {
        for level in ["none", "speed"] {
            std::fs::write(directory.join("random.o"), clif::object(&bytes, level, "x86_64")).unwrap();
            add(&mut kinds, same_targets(&directory, &[&main, "random.o"]));
            assert!(same_output(&directory, &[&main, "random.o"], true), "it does not end");
        }
    }
    println!("fixups by kind: {kinds:?}");
    covers(&kinds, &[R_X86_64_64, R_X86_64_PC32, R_X86_64_PLT32, R_X86_64_GOTPCREL]);
}

/// Linked here, for a machine that this one is not.
#[test]
fn functions_of_cranelift_for_aarch64() {
    use object::elf::*;
    let (count, seed) = count_and_seed();
    let directory = directory("cranelift-aarch64");
    let main = compile(
        &directory,
        &["clang-22", "--target=aarch64-linux-gnu", "-O1", "-fPIE"],
        "main.c",
        "unsigned long run(void);\nint main(void) { return (int)run(); }\n",
    );
    let mut kinds = Kinds::new();
    for bytes in decisions(count.div_ceil(2), seed) {
        for level in ["none", "speed"] {
            std::fs::write(directory.join("random.o"), clif::object(&bytes, level, "aarch64")).unwrap();
            add(&mut kinds, same_targets(&directory, &[&main, "random.o"]));
        }
    }
    println!("fixups by kind: {kinds:?}");
    covers(&kinds, &[R_AARCH64_ABS64, R_AARCH64_CALL26, R_AARCH64_ADR_GOT_PAGE, R_AARCH64_LD64_GOT_LO12_NC]);
}

/// As [`functions_of_cranelift_for_aarch64`].
#[test]
fn code_of_the_assembler_for_aarch64() {
    use object::elf::*;
    let (count, seed) = count_and_seed();
    let directory = directory("assembler-aarch64");
    let mut kinds = Kinds::new();
    for bytes in decisions(count.div_ceil(2), seed) {
        let is_llvm = bytes.len() % 2 == 1;
        let llvm: &[&str] = &["clang-22", "--target=aarch64-linux-gnu"];
        let assembler = if is_llvm { llvm } else { &["aarch64-linux-gnu-gcc"] };
        let program = assembler_aarch64::program(&bytes, is_llvm);
        let files = program.map(|(file, text)| compile(&directory, assembler, file, &text));
        add(&mut kinds, same_targets(&directory, &files.each_ref().map(String::as_str)));
    }
    println!("fixups by kind: {kinds:?}");
    covers(
        &kinds,
        &[
            R_AARCH64_ABS64,
            R_AARCH64_ABS32,
            R_AARCH64_PREL64,
            R_AARCH64_PREL32,
            R_AARCH64_LD_PREL_LO19,
            R_AARCH64_ADR_PREL_LO21,
            R_AARCH64_ADR_PREL_PG_HI21,
            R_AARCH64_ADD_ABS_LO12_NC,
            R_AARCH64_LDST8_ABS_LO12_NC,
            R_AARCH64_LDST16_ABS_LO12_NC,
            R_AARCH64_LDST32_ABS_LO12_NC,
            R_AARCH64_LDST64_ABS_LO12_NC,
            R_AARCH64_LDST128_ABS_LO12_NC,
            R_AARCH64_MOVW_UABS_G0_NC,
            R_AARCH64_MOVW_UABS_G1_NC,
            R_AARCH64_MOVW_UABS_G2_NC,
            R_AARCH64_MOVW_UABS_G3,
            R_AARCH64_CALL26,
            R_AARCH64_JUMP26,
            R_AARCH64_CONDBR19,
            R_AARCH64_TSTBR14,
            R_AARCH64_ADR_GOT_PAGE,
            R_AARCH64_LD64_GOT_LO12_NC,
            R_AARCH64_ABS16,
            R_AARCH64_PREL16,
            R_AARCH64_PLT32,
            R_AARCH64_GOTPCREL32,
            R_AARCH64_MOVW_UABS_G0,
            R_AARCH64_MOVW_UABS_G1,
            R_AARCH64_MOVW_UABS_G2,
            R_AARCH64_MOVW_SABS_G0,
            R_AARCH64_MOVW_SABS_G1,
            R_AARCH64_MOVW_SABS_G2,
            R_AARCH64_MOVW_PREL_G0,
            R_AARCH64_MOVW_PREL_G0_NC,
            R_AARCH64_MOVW_PREL_G1,
            R_AARCH64_MOVW_PREL_G1_NC,
            R_AARCH64_MOVW_PREL_G2,
            R_AARCH64_MOVW_PREL_G2_NC,
            R_AARCH64_MOVW_PREL_G3,
            R_AARCH64_ADR_PREL_PG_HI21_NC,
            R_AARCH64_GOT_LD_PREL19,
            R_AARCH64_LD64_GOTPAGE_LO15,
        ],
    );
}

#[test]
fn code_of_the_assembler() {
    use object::elf::*;
    let (count, seed) = count_and_seed();
    let directory = directory("assembler");
    let mut kinds = Kinds::new();
    for bytes in decisions(count, seed) {
        let assembler = if bytes.len() % 2 == 0 { ["gcc", "-fPIC"] } else { ["clang-22", "-fPIC"] };
        let program = assembler::program(&bytes, assembler::Reach::Anywhere);
        let files = program.map(|(file, text)| compile(&directory, &assembler, file, &text));
        let files = files.each_ref().map(String::as_str);
        add(&mut kinds, same_targets(&directory, &files));
        assert!(same_output(&directory, &files, true), "it does not end");
        // Fields that only reach what is low, which no process here is.
        let program = assembler::program(&bytes, assembler::Reach::Low);
        let files = program.map(|(file, text)| compile(&directory, &assembler, file, &text));
        add(&mut kinds, same_targets(&directory, &files.each_ref().map(String::as_str)));
    }
    println!("fixups by kind: {kinds:?}");
    covers(
        &kinds,
        &[
            R_X86_64_64,
            R_X86_64_PC64,
            R_X86_64_PC32,
            R_X86_64_PLT32,
            R_X86_64_32,
            R_X86_64_32S,
            R_X86_64_GOTPCREL,
            R_X86_64_GOTPCRELX,
            R_X86_64_REX_GOTPCRELX,
            R_X86_64_SIZE32,
            R_X86_64_SIZE64,
            R_X86_64_16,
            R_X86_64_8,
        ],
    );
}

/// The comparison would see one field that leads elsewhere.
#[test]
fn a_fixup_that_leads_elsewhere_is_seen() {
    let directory = directory("elsewhere");
    let text = "int a[2]; int f(void) { return a[0]; }\nint main(void) { return f() + a[1]; }\n";
    let file = compile(&directory, &["gcc", "-O1", "-fPIC"], "main.c", text);
    let bytes = std::fs::read(directory.join(&file)).unwrap();
    let objects = [object::File::parse(&*bytes).unwrap()];
    let mut ours = Image::ours(&directory, &[&file], &objects);
    let lld = Image::lld(&directory, &[&file], &objects, Linked::Program);
    decode::compare(&objects, &[&ours, &lld]).unwrap();
    let (section, (offset, _)) = objects[0]
        .sections()
        .filter(image::is_loaded)
        .find_map(|section| Some((section.index(), section.relocations().next()?)))
        .unwrap();
    ours.sections.get_mut(&(0, section)).unwrap().1[offset as usize] ^= 4;
    let error = decode::compare(&objects, &[&ours, &lld]).unwrap_err();
    assert!(error.contains("orcane link leads to"), "{error}");
}

/// The offset of the first field of a kind in an object's section of code, and of the next one after it.
fn fields_of(object: &object::File<'_>, kinds: [u32; 2]) -> (object::SectionIndex, [u64; 2]) {
    let section = object.sections().find(|section| section.name() == Ok(".text")).unwrap();
    let of = |wanted: u32| {
        let mut relocations = section.relocations();
        let found = relocations.find(
            |(_, relocation)| matches!(relocation.flags(), object::RelocationFlags::Elf { r_type } if r_type == wanted),
        );
        found.unwrap_or_else(|| panic!("no relocation of kind {wanted}")).0
    };
    (section.index(), kinds.map(of))
}

/// A field for an entry of the GOT that leads to the symbol itself, behind an instruction that takes an entry.
#[test]
fn a_symbol_in_place_of_its_got_entry_is_seen() {
    let directory = directory("entry");
    let text = "extern int a; int f(void) { return a; }\nint main(void) { return f(); }\n";
    let kind = object::elf::R_X86_64_REX_GOTPCRELX;
    let file = compile(&directory, &["gcc", "-O1", "-fPIC"], "main.c", text);
    let bytes = std::fs::read(directory.join(&file)).unwrap();
    let objects = [object::File::parse(&*bytes).unwrap()];
    let (section, [offset, _]) = fields_of(&objects[0], [kind; 2]);
    let offset = offset as usize;
    let mut ours = Image::ours(&directory, &[&file], &objects);
    let mut lld = Image::lld(&directory, &[&file], &objects, Linked::Program);
    decode::compare(&objects, &[&ours, &lld]).unwrap();

    // Ours takes the address by a `lea`; with the object's `mov`, it would load from the variable.
    let code = &mut ours.sections.get_mut(&(0, section)).unwrap().1;
    assert_eq!(code[offset - 2], 0x8d);
    code[offset - 2] = 0x8b;
    let error = decode::compare(&objects, &[&ours]).unwrap_err();
    assert!(error.contains("leads to no entry of the GOT"), "{error}");

    // lld's loads from the entry.
    let [(_, symbol)] = image::outside(&objects)[..] else { panic!("one symbol is elsewhere") };
    let (start, code) = lld.sections.get_mut(&(0, section)).unwrap();
    assert_eq!(code[offset - 2], 0x8b);
    let distance = symbol.wrapping_sub(*start + offset as u64 + 4) as u32;
    code[offset..offset + 4].copy_from_slice(&distance.to_le_bytes());
    let error = decode::compare(&objects, &[&lld]).unwrap_err();
    assert!(error.contains("leads to no entry of the GOT"), "{error}");
}

/// As that. Of the two instructions one may be right and the other not.
#[test]
fn a_symbol_in_place_of_its_got_entry_is_seen_for_aarch64() {
    use object::elf::*;
    let directory = directory("entry-aarch64");
    let text = "extern int a; int f(void) { return a; }\nint main(void) { return f(); }\n";
    let compiler = ["clang-22", "--target=aarch64-linux-gnu", "-O1", "-fPIC"];
    let file = compile(&directory, &compiler, "main.c", text);
    let bytes = std::fs::read(directory.join(&file)).unwrap();
    let objects = [object::File::parse(&*bytes).unwrap()];
    let (section, [adrp, load]) = fields_of(&objects[0], [R_AARCH64_ADR_GOT_PAGE, R_AARCH64_LD64_GOT_LO12_NC]);
    let ours = || Image::ours(&directory, &[&file], &objects);
    let lld = || Image::lld(&directory, &[&file], &objects, Linked::Program);
    decode::compare(&objects, &[&ours(), &lld()]).unwrap();

    let word_at = |image: &Image, offset: u64| {
        let code = &image.sections[&(0, section)].1;
        u32::from_le_bytes(*code[offset as usize..].first_chunk().unwrap())
    };
    let error_with = |mut image: Image, words: &[(u64, u32)]| {
        let code = &mut image.sections.get_mut(&(0, section)).unwrap().1;
        for (offset, word) in words {
            code[*offset as usize..][..4].copy_from_slice(&word.to_le_bytes());
        }
        decode::compare(&objects, &[&image]).unwrap_err()
    };
    // Ours adds to the page; with the object's load, it would load from the variable.
    let addition = word_at(&ours(), load);
    assert_eq!(addition >> 24, 0x91);
    let as_load = addition & 0x3ff | 0xf940_0000 | (addition >> 10 & 0xfff) >> 3 << 10;
    let error = error_with(ours(), &[(load, as_load)]);
    assert!(error.contains("leads to no entry of the GOT"), "{error}");

    // lld's loads from the entry: to the variable's page, and to its place in that.
    let [(_, symbol)] = image::outside(&objects)[..] else { panic!("one symbol is elsewhere") };
    let image = lld();
    let place = image.sections[&(0, section)].0 + adrp;
    let pages = (symbol >> 12).wrapping_sub(place >> 12) as u32;
    let to_page = word_at(&image, adrp) & 0x9f00_001f | (pages & 3) << 29 | (pages >> 2 & 0x7_ffff) << 5;
    let in_page = word_at(&image, load) & 0xffc0_03ff | ((symbol & 0xfff) as u32 >> 3) << 10;
    for words in [&[(adrp, to_page)][..], &[(load, in_page)], &[(adrp, to_page), (load, in_page)]] {
        let error = error_with(lld(), words);
        assert!(error.contains("leads to no entry of the GOT"), "{error}");
    }
}
