//! A jitdump file, read as the kernel's `jitdump-specification.txt` says.

use gimli::{BaseAddresses, CieOrFde, EhFrame, EhFrameHdr, EndianSlice, LittleEndian, UnwindSection};

pub(crate) struct Dump {
    pub(crate) process: u32,
    pub(crate) functions: Vec<Function>,
}

#[derive(Default)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) address: u64,
    pub(crate) code: Vec<u8>,
    /// Address, line and file.
    pub(crate) lines: Vec<(u64, u32, String)>,
    /// `.eh_frame` and `.eh_frame_hdr`.
    pub(crate) unwind: Option<(Vec<u8>, Vec<u8>)>,
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

/// Reads a whole dump, which must have nothing else in it than what is known here.
pub(crate) fn read(bytes: &[u8]) -> Dump {
    let mut file = Reader(bytes);
    assert_eq!((file.u32(), file.u32(), file.u32()), (0x4a69_5444, 1, 40));
    assert_eq!(file.u32(), if cfg!(target_arch = "x86_64") { 62 } else { 183 });
    file.u32();
    let process = file.u32();
    let mut time = file.u64();
    assert_eq!(file.u64(), 0);

    let mut functions = Vec::new();
    // What is said of a function comes before it.
    let mut next = Function::default();
    while !file.0.is_empty() {
        let (id, size, written) = (file.u32(), file.u32(), file.u64());
        assert!(written >= time);
        time = written;
        let mut body = Reader(file.take(size as usize - 16));
        match id {
            0 => {
                assert_eq!(body.u32(), process);
                body.u32();
                next.address = body.u64();
                assert_eq!(body.u64(), next.address);
                let (size, index) = (body.u64(), body.u64());
                assert_eq!(index, functions.len() as u64);
                next.name = body.name().to_owned();
                next.code = body.0.to_vec();
                assert_eq!(next.code.len() as u64, size);
                functions.push(std::mem::take(&mut next));
            }
            2 => {
                next.address = body.u64();
                for _ in 0..body.u64() {
                    let (address, line) = (body.u64(), body.u32());
                    assert_eq!(body.u32(), 0);
                    next.lines.push((address, line, body.name().to_owned()));
                }
                assert!(body.0.is_empty());
            }
            4 => {
                let (total, header, mapped) = (body.u64() as usize, body.u64() as usize, body.u64());
                assert_eq!((body.0.len(), mapped), (total, 0));
                let (frame, header) = body.0.split_at(total - header);
                next.unwind = Some((frame.to_vec(), header.to_vec()));
            }
            other => panic!("a record of kind {other}"),
        }
    }
    Dump { process, functions }
}

impl Dump {
    pub(crate) fn function(&self, name: &str) -> &Function {
        self.functions.iter().find(|function| function.name == name).unwrap_or_else(|| panic!("no {name}"))
    }
}

impl Function {
    /// The most registers that an unwinder restores somewhere in the function.
    pub(crate) fn most_restored(&self) -> usize {
        let (frame, header) = self.unwind.as_ref().expect("unwind information");
        let size = self.code.len() as u64;
        // As `perf inject` lays them out.
        let frame_address = self.address + size.next_multiple_of(8);
        let header_address = frame_address + frame.len() as u64;
        let bases = BaseAddresses::default().set_eh_frame(frame_address).set_eh_frame_hdr(header_address);
        let parsed = EhFrameHdr::new(header, LittleEndian).parse(&bases, 8).unwrap();
        let eh_frame = EhFrame::from(EndianSlice::new(frame, LittleEndian));
        let table = parsed.table().unwrap();
        let fde = table.fde_for_address(&eh_frame, &bases, self.address + 1, EhFrame::cie_from_offset).unwrap();
        assert_eq!((fde.initial_address(), fde.len()), (self.address, size));
        let mut entries = eh_frame.entries(&bases);
        assert!(matches!(entries.next().unwrap(), Some(CieOrFde::Cie(_))));
        assert!(matches!(entries.next().unwrap(), Some(CieOrFde::Fde(_))));
        assert!(entries.next().unwrap().is_none());
        let mut context = gimli::UnwindContext::new();
        let restored = (self.address..self.address + size).map(|place| {
            let row = fde.unwind_info_for_address(&eh_frame, &bases, &mut context, place).unwrap();
            row.registers().count()
        });
        restored.max().unwrap()
    }

    /// Whether the lines lie in the function, in order, and are of one file: the lines' numbers.
    pub(crate) fn lines_of(&self, file: &str) -> Vec<u32> {
        let code = self.address..self.address + self.code.len() as u64;
        assert!(self.lines.iter().all(|(address, _, of)| code.contains(address) && of == file), "{:?}", self.lines);
        assert!(self.lines.is_sorted_by_key(|line| line.0));
        self.lines.iter().map(|line| line.1).collect()
    }
}
