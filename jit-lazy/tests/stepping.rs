//! Every instruction on the way through stubs, trampolines, the re-entry routine and compiled code, as a signal finds
//! it: the process's unwinder, the standard library's backtrace and an unwinder of other people's making lead from it
//! to the callers that there are.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod common;

use std::arch::asm;
use std::backtrace::Backtrace;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use common::{add, builder, caller, constant, redefine};
use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{ExplicitModuleSectionInfo, FrameAddress, MayAllocateDuringUnwind, Module, Unwinder as _};
use jit_core::{AbsoluteSymbol, LookupError, SymbolDef, SymbolFlags, SymbolName};
use jit_lazy::Tiering;

unsafe extern "C-unwind" {
    fn _Unwind_Backtrace(visit: extern "C" fn(*mut c_void, *mut c_void) -> c_int, state: *mut c_void) -> c_int;
    fn _Unwind_GetIP(frame: *mut c_void) -> usize;
    fn _Unwind_FindEnclosingFunction(pc: *mut c_void) -> *mut c_void;
}

/// What the handler of each step looks at, and what it has seen.
#[derive(Default)]
struct Steps {
    /// Code of the program and its libraries.
    host: Vec<Range<u64>>,
    /// Code of which nothing is known.
    foreign: Range<u64>,
    /// Calls that have not returned, the outermost first: where to, and where on the stack that stands.
    calls: Vec<(u64, u64)>,
    /// Program counter and stack pointer of the step before.
    before: (u64, u64),
    /// The routine that trampolines jump to.
    routine: u64,
    /// Where it was looked, by what was there.
    seen: [BTreeSet<u64>; 2],
    /// What was wrong.
    wrong: Vec<String>,
}

/// No routine is longer.
const NEAR: u64 = 1024;

/// The processor's flag that has it trap after each instruction.
const TRAP: i64 = 0x100;

const JIT: usize = 0;
const ROUTINE: usize = 1;

thread_local! {
    static STEPS: RefCell<Steps> = RefCell::default();
}

impl Steps {
    /// Follows calls and returns, by what they do to the stack.
    fn follow(&mut self, pc: u64, sp: u64) {
        let (pc_before, sp_before) = self.before;
        self.before = (pc, sp);
        while self.calls.last().is_some_and(|call| call.1 < sp) {
            self.calls.pop();
        }
        if sp + 8 != sp_before {
            return;
        }
        const LONGEST_INSTRUCTION: u64 = 15;
        let pushed = word(sp);
        if pushed > pc_before && pushed <= pc_before + LONGEST_INSTRUCTION {
            self.calls.push((pushed, sp));
        }
    }

    /// What is at an address, if the test is about it.
    fn place(&mut self, pc: u64) -> Option<usize> {
        if self.foreign.contains(&pc) {
            return None;
        }
        if !self.host.iter().any(|range| range.contains(&pc)) {
            return Some(JIT);
        }
        // Elsewhere in the host a lock may be held that unwinders take.
        let near = self.routine..self.routine + NEAR;
        (near.contains(&pc) && function_at(pc) == self.routine).then_some(ROUTINE)
    }
}

fn word(address: u64) -> u64 {
    // SAFETY: the test only asks for words on its own stack.
    unsafe { *std::ptr::with_exposed_provenance::<u64>(address as usize) }
}

fn function_at(pc: u64) -> u64 {
    // SAFETY: it only looks tables up.
    unsafe { _Unwind_FindEnclosingFunction(std::ptr::with_exposed_provenance_mut(pc as usize)) }.addr() as u64
}

extern "C" fn step(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the system hands a handler the state that it interrupted.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let [pc, sp, fp] =
        [libc::REG_RIP, libc::REG_RSP, libc::REG_RBP].map(|register| registers[register as usize] as u64);
    STEPS.with_borrow_mut(|steps| {
        let from = steps.before.0;
        let calls = steps.calls.len();
        steps.follow(pc, sp);
        // Compiled code calls the host, and jumps to the routine only.
        if steps.routine == 0 && steps.calls.len() == calls && from != 0 {
            let (was_host, is_host) = (is_in(&steps.host, from), is_in(&steps.host, pc));
            if !was_host && is_host && !steps.foreign.contains(&from) {
                steps.routine = pc;
            }
        }
        let Some(place) = steps.place(pc) else {
            if steps.routine != 0 && (steps.routine..steps.routine + NEAR).contains(&from) {
                // Into the lookup, which is long and of no interest.
                registers[libc::REG_EFL as usize] &= !TRAP;
            }
            return;
        };
        steps.seen[place].insert(pc);
        let truth: Vec<u64> = std::iter::once(pc).chain(steps.calls.iter().rev().map(|call| call.0)).collect();
        check(&truth, [pc, sp, fp], &mut steps.wrong);
        // Names are looked up for each, which takes long.
        if place == JIT || steps.seen[ROUTINE].len().is_multiple_of(8) {
            let trace = Backtrace::force_capture().to_string();
            if !trace.contains("a_named_caller") {
                steps.wrong.push(format!("the standard library at {pc:#x}: {trace}"));
            }
        }
    });
}

fn is_in(ranges: &[Range<u64>], address: u64) -> bool {
    ranges.iter().any(|range| range.contains(&address))
}

/// Compares what unwinders say with the calls that there were.
fn check(truth: &[u64], [pc, sp, fp]: [u64; 3], wrong: &mut Vec<String>) {
    let frames = frames();
    let found = frames.iter().position(|frame| *frame == pc).map(|first| &frames[first..]);
    if found.is_none_or(|found| !found.starts_with(truth)) {
        wrong.push(format!("the process's unwinder at {pc:#x}: {frames:#x?} instead of {truth:#x?}"));
    }
    match one_frame(pc, sp, fp) {
        Ok(caller) if caller == truth[1] => {}
        other => wrong.push(format!("framehop at {pc:#x}: {other:#x?} instead of {:#x}", truth[1])),
    }
}

/// Addresses of the frames of this thread, as the process's unwinder finds them.
fn frames() -> Vec<u64> {
    extern "C" fn visit(frame: *mut c_void, frames: *mut c_void) -> c_int {
        // SAFETY: the list below, and a frame that the unwinder shows.
        unsafe { (*frames.cast::<Vec<u64>>()).push(_Unwind_GetIP(frame) as u64) };
        0
    }
    let mut frames = Vec::new();
    // SAFETY: `visit` takes what it is given here.
    unsafe { _Unwind_Backtrace(visit, (&raw mut frames).cast()) };
    frames
}

/// The caller of an interrupted function, as framehop reads the function's entry.
fn one_frame(pc: u64, sp: u64, fp: u64) -> Result<u64, String> {
    let (start, place, section) = entry(pc).ok_or("there is no entry")?;
    let range = start..pc + 1;
    let info = ExplicitModuleSectionInfo {
        base_svma: start,
        text_svma: Some(range.clone()),
        eh_frame_svma: Some(place..place + section.len() as u64),
        eh_frame: Some(section),
        ..Default::default()
    };
    let mut unwinder: UnwinderX86_64<Vec<u8>> = UnwinderX86_64::new();
    unwinder.add_module(Module::new("jit".to_owned(), range, start, info));
    let mut cache: CacheX86_64<MayAllocateDuringUnwind> = CacheX86_64::new();
    let mut registers = UnwindRegsX86_64::new(pc, sp, fp);
    let address = FrameAddress::from_instruction_pointer(pc);
    let caller = unwinder.unwind_frame(address, &mut registers, &mut cache, &mut |address| Ok(word(address)));
    caller.map_err(|error| error.to_string())?.ok_or_else(|| "the stack ends".to_owned())
}

/// Where a function begins, and a section of its entry alone after what that refers to, with the address at which the
/// entry would be where it is.
fn entry(pc: u64) -> Option<(u64, u64, Vec<u8>)> {
    unsafe extern "C" {
        fn _Unwind_Find_FDE(pc: *mut c_void, bases: *mut [*mut c_void; 3]) -> *const u8;
    }
    let mut bases = [std::ptr::null_mut(); 3];
    // SAFETY: it only looks tables up, and writes three words.
    let entry = unsafe { _Unwind_Find_FDE(std::ptr::with_exposed_provenance_mut(pc as usize), &mut bases) };
    if entry.is_null() {
        return None;
    }
    // SAFETY: an entry of a table that is registered begins with its length and the way back to what it shares.
    unsafe {
        let bytes =
            |entry: *const u8| std::slice::from_raw_parts(entry, entry.cast::<u32>().read_unaligned() as usize + 4);
        let back = entry.add(4).cast::<u32>().read_unaligned() as usize;
        let mut section = bytes(entry.add(4).sub(back)).to_vec();
        let own = section.len();
        section.extend_from_slice(bytes(entry));
        section[own + 4..own + 8].copy_from_slice(&(own as u32 + 4).to_le_bytes());
        section.extend_from_slice(&[0; 4]);
        Some((bases[2].addr() as u64, entry.addr() as u64 - own as u64, section))
    }
}

/// Where code of files is mapped.
fn host() -> Vec<Range<u64>> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let code = maps.lines().filter(|line| line.contains(" r-xp ") && !line.contains("/memfd:"));
    let hex = |text| u64::from_str_radix(text, 16).unwrap();
    code.filter(|line| line.contains(" /") || line.contains("[vdso]"))
        .map(|line| line.split(' ').next().unwrap().split_once('-').unwrap())
        .map(|(start, end)| hex(start)..hex(end))
        .collect()
}

/// Calls a function one instruction at a time.
#[inline(never)]
fn a_named_caller(address: u64) -> i64 {
    let result: i64;
    // SAFETY: a function without arguments that only computes; the trap flag is as before in the end, and the red
    // zone is left alone.
    unsafe {
        asm!(
            "sub rsp, 128",
            "pushfq",
            "or qword ptr [rsp], {TRAP}",
            "popfq",
            // The first trap comes after it: before the call.
            "nop",
            "call {address}",
            "pushfq",
            "and qword ptr [rsp], {NO_TRAP}",
            "popfq",
            "add rsp, 128",
            TRAP = const TRAP,
            NO_TRAP = const !TRAP,
            address = in(reg) address,
            lateout("rax") result,
            clobber_abi("C"),
        );
    }
    std::hint::black_box(result)
}

/// A function that returns 7, further from everything than a call reaches.
fn far() -> Range<u64> {
    const PAGE: usize = 4096;
    // mov eax, 7; ret
    const CODE: [u8; 6] = [0xb8, 7, 0, 0, 0, 0xc3];
    let wanted = std::ptr::without_provenance_mut(0x10_0000_0000);
    // SAFETY: a new mapping, where nothing is.
    let start = unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let start = libc::mmap(wanted, PAGE, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
        assert_ne!(start, libc::MAP_FAILED);
        start.cast::<[u8; 6]>().write(CODE);
        assert_eq!(libc::mprotect(start, PAGE, libc::PROT_READ | libc::PROT_EXEC), 0);
        start.expose_provenance() as u64
    };
    start..start + PAGE as u64
}

fn watch_steps(foreign: Range<u64>) {
    STEPS.with_borrow_mut(|steps| {
        (steps.host, steps.foreign) = (host(), foreign);
        // Where the host is interrupted, nothing can be allocated.
        steps.calls.reserve(10_000);
    });
    // SAFETY: the handler is of the type that is asked for, and stays.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = step as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGTRAP, &raw const action, std::ptr::null_mut()), 0);
    }
}

#[test]
fn every_unwinder_finds_the_callers_of_every_instruction_of_an_entry_that_counts() {
    let jit = builder().tiers(Tiering::default().threshold(2)).build().unwrap();
    redefine(&jit, &constant("f", 7)).unwrap();
    jit.lookup::<common::Nullary>("f").unwrap();
    let address = jit.lookup_address("f").unwrap();
    watch_steps(0..0);
    assert_eq!(a_named_caller(address), 7);
    // Stub, entry, of which the jump to the body is what is gone through, and body.
    let counted = STEPS.with_borrow_mut(|steps| std::mem::take(&mut steps.seen[JIT]));
    // It runs out, and in the routine, which has no interest in who came, stepping ends.
    assert_eq!(a_named_caller(address), 7);
    let steps = STEPS.take();
    assert!(steps.wrong.is_empty(), "{} of {:?}: {}", steps.wrong.len(), steps.seen, steps.wrong[0]);
    // The push and two jumps on the way to the routine in place of the jump to the body.
    let ran_out: Vec<_> = steps.seen[JIT].difference(&counted).collect();
    assert_eq!(ran_out.len(), 3, "{:x?} after {counted:x?}", steps.seen);
    assert!(steps.seen[ROUTINE].len() > 10, "{:x?}", steps.seen);
}

#[test]
fn every_unwinder_finds_the_callers_of_every_instruction() {
    let foreign = far();
    let substitute = Arc::new(OnceLock::new());
    let address = Arc::clone(&substitute);
    let go_on = move |_: &SymbolName, _: &LookupError| {
        // SAFETY: only sets the flag, and leaves the red zone alone.
        unsafe {
            asm!("sub rsp, 128", "pushfq", "or qword ptr [rsp], {TRAP}", "popfq", "add rsp, 128", TRAP = const TRAP)
        };
        *address.get().unwrap()
    };
    let jit = builder().failure_handler(go_on).build().unwrap();
    jit.main()
        .define_absolute(vec![AbsoluteSymbol {
            name: jit.session().intern("far"),
            definition: SymbolDef::at(foreign.start),
            flags: SymbolFlags::FUNCTION,
            signature: None,
        }])
        .unwrap();
    // `outer` calls `broken`, which can't be compiled, for the first time. What is called instead calls what is far.
    add(&jit, &caller("substitute", "far"));
    substitute.set(jit.lookup_address("substitute").unwrap()).unwrap();
    redefine(&jit, &caller("broken", "missing")).unwrap();
    redefine(&jit, &caller("outer", "broken")).unwrap();
    jit.lookup::<common::Nullary>("outer").unwrap();
    let outer = jit.lookup_address("outer").unwrap();

    watch_steps(foreign);
    assert_eq!(a_named_caller(outer), 207);
    let steps = STEPS.take();
    assert!(steps.wrong.is_empty(), "{} of {:?}: {}", steps.wrong.len(), steps.seen, steps.wrong[0]);
    // Stub, body, stub, trampoline and the jump that they share; what was called instead, and the stub that it needs.
    assert!(steps.seen[JIT].len() > 20, "{:x?}", steps.seen);
    // Registers saved and restored, before and after the call that the routine makes.
    assert!(steps.seen[ROUTINE].len() > 30, "{:x?}", steps.seen);
    assert!(steps.calls.is_empty());
}
