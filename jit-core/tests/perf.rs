//! What `perf` finds of compiled code.

#![cfg(target_os = "linux")]

mod common;

use cranelift_codegen::ir::{AbiParam, InstBuilder, SourceLoc, types};
use cranelift_module::{Linkage, Module};
use gimli::{BaseAddresses, CieOrFde, EhFrame, EhFrameHdr, EndianSlice, LittleEndian, UnwindSection};
use jit_core::{Jit, JitBuilder, Profiler, SourceText};

/// Compiles `f`, whose lines are known, and gives where it is.
fn compile(builder: JitBuilder) -> (Jit, u64) {
    let jit = builder.build().unwrap();
    let mut module = jit.module("profiled").source(SourceText::new("/src/prog.k", "one\ntwo\n"));
    let mut signature = module.make_signature();
    signature.returns.push(AbiParam::new(types::I64));
    let id = module.declare_function("f", Linkage::Export, &signature).unwrap();
    common::build(&mut module, id, |_, builder| {
        builder.set_srcloc(SourceLoc::new(4));
        let value = builder.ins().iconst(types::I64, 4);
        builder.ins().return_(&[value]);
    });
    jit.add_module(module).unwrap();
    let address = jit.lookup_address("f").unwrap();
    (jit, address)
}

#[test]
fn the_map_has_a_line_for_each_function() {
    let (_jit, address) = compile(Jit::builder().profiler(Profiler::PerfMap));
    let path = format!("/tmp/perf-{}.map", std::process::id());
    let map = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let lines: Vec<Vec<&str>> = map.lines().map(|line| line.splitn(3, ' ').collect()).collect();
    let line = lines.iter().find(|line| line[2] == "f").unwrap();
    assert_eq!(u64::from_str_radix(line[0], 16).unwrap(), address);
    assert!((1..100).contains(&u64::from_str_radix(line[1], 16).unwrap()));
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(count);
        self.0 = rest;
        head
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }

    fn name(&mut self) -> &'a str {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap();
        std::str::from_utf8(&self.take(end + 1)[..end]).unwrap()
    }
}

#[test]
fn the_dump_has_code_lines_and_unwind_information() {
    let folder = tempfile::tempdir().unwrap();
    let (_jit, address) = compile(Jit::builder().profiler(Profiler::JitDump(folder.path().to_owned())));
    let path = folder.path().join(format!("jit-{}.dump", std::process::id()));
    let bytes = std::fs::read(path).unwrap();
    let mut file = Reader(&bytes);
    assert_eq!((file.u32(), file.u32(), file.u32()), (0x4a69_5444, 1, 40));
    assert_eq!(file.u32(), if cfg!(target_arch = "x86_64") { 62 } else { 183 });
    file.u32();
    assert_eq!(file.u32(), std::process::id());
    let began = file.u64();
    assert_eq!(file.u64(), 0);

    let mut records = Vec::new();
    while !file.0.is_empty() {
        let (id, size, time) = (file.u32(), file.u32(), file.u64());
        assert!(time >= began);
        records.push((id, Reader(file.take(size as usize - 16))));
    }
    assert_eq!(records.iter().map(|record| record.0).collect::<Vec<_>>(), [2, 4, 0]);
    let [lines, unwind, load] = records.try_into().map(|records: [_; 3]| records.map(|(_, body)| body)).ok().unwrap();

    let mut load = load;
    assert_eq!(load.u32(), std::process::id());
    load.u32();
    assert_eq!((load.u64(), load.u64()), (address, address));
    let (size, index) = (load.u64(), load.u64());
    assert_eq!((index, load.name()), (0, "f"));
    assert_eq!(load.0.len() as u64, size);
    // SAFETY: the code of the function, which is in memory as long as the JIT.
    let code = unsafe { std::slice::from_raw_parts(address as *const u8, size as usize) };
    assert_eq!(load.0, code);

    let mut lines = lines;
    assert_eq!(lines.u64(), address);
    assert!((1..5).contains(&lines.u64()));
    assert!((address..address + size).contains(&lines.u64()));
    assert_eq!((lines.u32(), lines.u32(), lines.name()), (2, 0, "/src/prog.k"));

    let mut unwind = unwind;
    let (total, header_size, mapped) = (unwind.u64() as usize, unwind.u64() as usize, unwind.u64());
    assert_eq!((unwind.0.len(), mapped), (total, 0));
    let (frame, header) = unwind.0.split_at(total - header_size);
    // As `perf inject` lays them out.
    let frame_address = address + size.next_multiple_of(8);
    let header_address = frame_address + frame.len() as u64;
    let bases = BaseAddresses::default().set_eh_frame(frame_address).set_eh_frame_hdr(header_address);
    let parsed = EhFrameHdr::new(header, LittleEndian).parse(&bases, 8).unwrap();
    let eh_frame = EhFrame::from(EndianSlice::new(frame, LittleEndian));
    let table = parsed.table().unwrap();
    let fde = table.fde_for_address(&eh_frame, &bases, address + 1, EhFrame::cie_from_offset).unwrap();
    assert_eq!((fde.initial_address(), fde.len()), (address, size));
    let mut entries = eh_frame.entries(&bases);
    assert!(matches!(entries.next().unwrap(), Some(CieOrFde::Cie(_))));
    assert!(matches!(entries.next().unwrap(), Some(CieOrFde::Fde(_))));
    assert!(entries.next().unwrap().is_none());
    let mut context = gimli::UnwindContext::new();
    // At the return they are restored again.
    let saves = (address..address + size).any(|place| {
        let row = fde.unwind_info_for_address(&eh_frame, &bases, &mut context, place).unwrap();
        row.registers().count() > 0
    });
    assert!(saves);
}
