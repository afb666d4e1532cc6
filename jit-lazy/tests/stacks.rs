//! First calls from threads and stacks of all kinds.

mod common;

use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::{at, call, constant, jit, redefine, this_program};
use jit_core::{
    Cause, ExecutionSession, Jit, LookupError, MaterializationResponsibility, MaterializationUnit,
    RedirectableFunction, SearchOrder, SymbolDeclaration, SymbolDef, SymbolFlags, SymbolName, UnitDefinition,
};
use jit_lazy::LazyJitBuilder;

/// Adds the numbers up to its argument, calling itself; the innermost call makes a first call.
const DEEP: &str = "
    function %deep(i64) -> i64 system_v {
        sig0 = (i64) -> i64 system_v
        sig1 = () -> i64 system_v
        fn0 = %deep sig0
        fn1 = %bottom sig1
    block0(v0: i64):
        brif v0, block1, block2
    block1:
        v5 = iconst.i64 -1
        v1 = iadd v0, v5
        v2 = call fn0(v1)
        v3 = iadd v2, v0
        return v3
    block2:
        v4 = call fn1()
        return v4
    }";

#[test]
fn lazy_04_from_deep_recursion() {
    let jit = jit();
    redefine(&jit, DEEP).unwrap();
    redefine(&jit, &constant("bottom", 7)).unwrap();
    let deep = jit.lookup::<unsafe extern "C" fn(i64) -> i64>("deep").unwrap();
    // 60,000 frames of at least 24 bytes leave less than Cranelift needs.
    let thread = thread::Builder::new().stack_size(60_000 * 32 + (64 << 10));
    // SAFETY: the functions only compute, and the stack is large enough for them.
    let sum = thread.spawn(move || unsafe { deep.call(60_000) }).unwrap().join().unwrap();
    assert_eq!(sum, 60_000 * 60_001 / 2 + 7);
}

#[test]
fn lazy_04_from_a_thread_with_a_small_stack() {
    let jit = jit();
    redefine(&jit, &constant("f", 5)).unwrap();
    let address = jit.lookup_address("f").unwrap();
    let small = thread::Builder::new().stack_size(64 << 10);
    // SAFETY: the function only computes.
    assert_eq!(small.spawn(move || unsafe { at(address)() }).unwrap().join().unwrap(), 5);
    assert_eq!(jit.stats().compile.functions, 1);
}

extern "C" fn foreign(address: *mut libc::c_void) -> *mut libc::c_void {
    // SAFETY: a function that only computes.
    std::ptr::without_provenance_mut(unsafe { at(address as u64)() } as usize)
}

#[test]
fn lazy_04_from_a_thread_that_the_session_never_saw() {
    let jit = jit();
    redefine(&jit, &constant("f", 6)).unwrap();
    let address = std::ptr::without_provenance_mut(jit.lookup_address("f").unwrap() as usize);
    let mut result = std::ptr::null_mut();
    // SAFETY: a thread that calls `foreign`, whose result is waited for.
    unsafe {
        let mut thread = std::mem::zeroed();
        assert_eq!(libc::pthread_create(&raw mut thread, std::ptr::null(), foreign, address), 0);
        assert_eq!(libc::pthread_join(thread, &raw mut result), 0);
    }
    assert_eq!(result as usize, 6);
}

/// What the signal handler calls.
static CALLEE: AtomicU64 = AtomicU64::new(0);
/// What that gave.
static RESULT: AtomicI64 = AtomicI64::new(0);

#[unsafe(no_mangle)]
extern "C" fn a_signal_handler(_: libc::c_int) {
    // SAFETY: a function that only computes.
    RESULT.store(unsafe { at(CALLEE.load(Ordering::Relaxed))() }, Ordering::Relaxed);
}

fn raise(address: u64) -> i64 {
    raise_signal(libc::SIGUSR1, libc::SA_RESTART, address)
}

extern "C" fn another_signal_handler(_: libc::c_int) {}

/// Calls what is at an address in a handler that was installed with these flags and an empty mask.
fn raise_signal(signal: libc::c_int, flags: libc::c_int, address: u64) -> i64 {
    CALLEE.store(address, Ordering::Relaxed);
    let install = |signal, handler: extern "C" fn(libc::c_int)| {
        // SAFETY: the handler is a function of the type that is asked for.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as libc::sighandler_t;
            action.sa_flags = flags;
            assert_eq!(libc::sigaction(signal, &raw const action, std::ptr::null_mut()), 0);
        }
    };
    // One of two that were installed alike.
    install(libc::SIGURG, another_signal_handler);
    install(signal, a_signal_handler);
    // SAFETY: its handler was just installed.
    unsafe { libc::raise(signal) };
    RESULT.load(Ordering::Relaxed)
}

#[test]
fn a_signal_handler_can_call_what_is_compiled() {
    let jit = jit();
    redefine(&jit, &constant("f", 5)).unwrap();
    call(&jit, "f");
    assert_eq!(raise(jit.lookup_address("f").unwrap()), 5);
    // Looked up by name, it is ready as well.
    redefine(&jit, &constant("g", 6)).unwrap();
    jit.lookup::<common::Nullary>("g").unwrap();
    assert_eq!(raise(jit.lookup_address("g").unwrap()), 6);
}

/// What is known of a thread that comes to be in a signal handler.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Interrupted {
    /// It has made first calls.
    Known,
    /// So has it, with another signal blocked than that of the handler.
    Blocking,
    /// It makes its first.
    New,
    /// It is on a stack that it did not begin with, and the system does not know.
    OnStackOfOurs,
}

/// Does `work` on a thread of this kind.
fn interrupted(thread: Interrupted, jit: &Jit, work: fn()) {
    let call_before = || assert_eq!(call(jit, "before"), 4);
    match thread {
        Interrupted::Known => {
            call_before();
            work();
        }
        Interrupted::Blocking => {
            // SAFETY: blocks a signal that nobody sends.
            unsafe {
                let mut set = std::mem::zeroed();
                libc::sigemptyset(&raw mut set);
                libc::sigaddset(&raw mut set, libc::SIGUSR2);
                libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            }
            call_before();
            work();
        }
        Interrupted::New => thread::spawn(work).join().unwrap(),
        Interrupted::OnStackOfOurs => {
            call_before();
            on_stack_of_ours(work);
        }
    }
}

/// Behind the stack there is no memory.
#[cfg(target_os = "linux")]
fn on_stack_of_ours(work: fn()) {
    const SIZE: usize = 256 << 10;
    extern "C" fn start(high: u32, low: u32) {
        let work = (u64::from(high) << 32 | u64::from(low)) as usize;
        // SAFETY: the address of such a function, as `makecontext` is given it below.
        let work: fn() = unsafe { std::mem::transmute(work) };
        work();
    }
    let page = region::page::size();
    let mut stack = region::alloc(SIZE + page, region::Protection::READ_WRITE).unwrap();
    let start_of_stack = stack.as_mut_ptr::<u8>();
    // SAFETY: the last page is within, and not used yet.
    unsafe { region::protect(start_of_stack.add(SIZE), page, region::Protection::NONE).unwrap() };
    let work = work as *const () as u64;
    // SAFETY: a context with a stack of its own, which goes on in this one when it ends. Arguments are of type `int`.
    unsafe {
        let (mut here, mut there) = (std::mem::zeroed(), std::mem::zeroed::<libc::ucontext_t>());
        libc::getcontext(&raw mut there);
        there.uc_stack.ss_sp = start_of_stack.cast();
        there.uc_stack.ss_size = SIZE;
        there.uc_link = &raw mut here;
        let start = std::mem::transmute::<*const (), extern "C" fn()>(start as *const ());
        libc::makecontext(&raw mut there, start, 2, (work >> 32) as u32, work as u32);
        assert_eq!(libc::swapcontext(&raw mut here, &raw const there), 0);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_first_call_leaves_errno_as_it_was() {
    static FUNCTION: AtomicU64 = AtomicU64::new(0);
    static ERRNO: AtomicI32 = AtomicI32::new(0);
    let jit = jit();
    redefine(&jit, &constant("f", 5)).unwrap();
    FUNCTION.store(jit.lookup_address("f").unwrap(), Ordering::Relaxed);
    // The end of the stack is found by a system call that fails.
    let work = || {
        on_stack_of_ours(|| {
            // SAFETY: the thread's own; the function only computes.
            let errno = unsafe {
                libc::__errno_location().write(1234);
                at(FUNCTION.load(Ordering::Relaxed))();
                libc::__errno_location().read()
            };
            ERRNO.store(errno, Ordering::Relaxed);
        });
    };
    thread::spawn(work).join().unwrap();
    assert_eq!(ERRNO.load(Ordering::Relaxed), 1234);
}

/// The signal, the flags of its handler, and the thread.
fn handlers() -> Vec<(libc::c_int, libc::c_int, Interrupted)> {
    use Interrupted::{Blocking, Known, New, OnStackOfOurs};
    let usual = libc::SA_RESTART;
    let mut signals = vec![libc::SIGUSR1];
    #[cfg(target_os = "linux")]
    signals.push(libc::SIGRTMIN());
    // Other machines may be emulated, and the last signals the emulator's own.
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    signals.push(libc::SIGRTMAX());
    let mut handlers: Vec<_> =
        signals.into_iter().flat_map(|signal| [Known, Blocking, New].map(|thread| (signal, usual, thread))).collect();
    // With the same signals blocked in the handler as outside of it.
    #[cfg(target_os = "linux")]
    for flags in [libc::SA_NODEFER, libc::SA_NODEFER | libc::SA_RESETHAND, libc::SA_NODEFER | libc::SA_ONSTACK] {
        let threads = [Known, Blocking, New, OnStackOfOurs];
        handlers.extend(threads.map(|thread| (libc::SIGUSR1, flags, thread)));
    }
    handlers
}

#[test]
fn a_first_call_in_a_signal_handler_ends_the_process_with_the_handlers_name() {
    const CHILD: &str = "ORCANE_TEST_SIGNAL";
    static CASE: AtomicUsize = AtomicUsize::new(0);
    let handlers = handlers();
    if let Ok(case) = std::env::var(CHILD) {
        CASE.store(case.parse().unwrap(), Ordering::Relaxed);
        let (_, _, thread) = handlers[CASE.load(Ordering::Relaxed)];
        let jit = jit();
        redefine(&jit, &format!("{}{}", constant("before", 4), constant("callee", 5))).unwrap();
        CALLEE.store(jit.lookup_address("callee").unwrap(), Ordering::Relaxed);
        interrupted(thread, &jit, || {
            let (signal, flags, _) = self::handlers()[CASE.load(Ordering::Relaxed)];
            raise_signal(signal, flags, CALLEE.load(Ordering::Relaxed));
        });
        return;
    }
    for (case, what) in handlers.iter().enumerate() {
        let name = "a_first_call_in_a_signal_handler_ends_the_process_with_the_handlers_name";
        let output =
            this_program().args(["--exact", "--nocapture", name]).env(CHILD, case.to_string()).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{what:?}: {told}");
        assert!(
            told.contains("'callee' was first called in the signal handler "),
            "{what:?}: {:?} {told}",
            output.status
        );
        // By name where the program exports it, by place in its file otherwise.
        let names_it = told.contains("a_signal_handler") || told.contains("at 0x") && told.contains("stacks");
        assert!(names_it, "{what:?}: {told}");
    }
}

#[test]
fn what_a_signal_handler_has_left_on_the_stack_is_none() {
    #[inline(never)]
    fn at_depth(work: &dyn Fn()) {
        let frame = [const { std::mem::MaybeUninit::<u8>::uninit() }; 16 << 10];
        std::hint::black_box(&frame);
        work();
        std::hint::black_box(&frame);
    }
    let jit = jit();
    redefine(&jit, &format!("{}{}", constant("ready", 4), constant("f", 5))).unwrap();
    call(&jit, "ready");
    let ready = jit.lookup_address("ready").unwrap();
    #[cfg(target_os = "linux")]
    let flags = libc::SA_NODEFER;
    #[cfg(not(target_os = "linux"))]
    let flags = 0;
    assert_eq!(raise_signal(libc::SIGUSR1, flags, ready), 4);
    at_depth(&|| assert_eq!(call(&jit, "f"), 5));
}

#[test]
fn blocked_signals_do_not_make_a_signal_handler() {
    let jit = jit();
    redefine(&jit, &constant("f", 5)).unwrap();
    let address = jit.lookup_address("f").unwrap();
    let result = thread::spawn(move || {
        // SAFETY: blocks a signal for this thread, which ends; the function only computes.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGUSR2);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            at(address)()
        }
    });
    assert_eq!(result.join().unwrap(), 5);
}

/// A unit that does something and then defines its symbol.
struct Doing<F>(SymbolName, F);

impl<F: FnOnce(&ExecutionSession) + Send> MaterializationUnit for Doing<F> {
    fn materialize(self: Box<Self>, responsibility: MaterializationResponsibility) {
        (self.1)(responsibility.session());
        let definition = SymbolDef::at(seven as *const () as u64);
        if responsibility.resolve(&[(self.0, definition)]).is_ok() {
            _ = responsibility.emit(&[]);
        }
    }

    fn discard(&mut self, _: &SymbolName) {}
}

extern "C" fn seven() -> i64 {
    7
}

/// Does `work` where less stack is left than compiling takes.
fn with_little_stack(work: &mut dyn FnMut()) {
    fn deeper(lowest: usize, work: &mut dyn FnMut()) {
        const LEFT: usize = 256 << 10;
        let frame = [0_u8; 4096];
        if std::hint::black_box(&frame).as_ptr() as usize - lowest < LEFT {
            return work();
        }
        deeper(lowest, work);
        std::hint::black_box(&frame);
    }
    deeper(lowest_of_stack(), work);
}

/// The C library may have given the thread the larger stack of one that has ended.
#[cfg(target_os = "linux")]
fn lowest_of_stack() -> usize {
    let (mut start, mut size) = (std::ptr::null_mut(), 0);
    // SAFETY: asks for the calling thread; the attributes are initialized, read and destroyed once.
    unsafe {
        let mut attributes = std::mem::zeroed();
        assert_eq!(libc::pthread_getattr_np(libc::pthread_self(), &raw mut attributes), 0);
        assert_eq!(libc::pthread_attr_getstack(&raw const attributes, &raw mut start, &raw mut size), 0);
        libc::pthread_attr_destroy(&raw mut attributes);
    }
    start as usize
}

#[cfg(target_vendor = "apple")]
fn lowest_of_stack() -> usize {
    // SAFETY: both ask for the calling thread.
    unsafe {
        let thread = libc::pthread_self();
        libc::pthread_get_stackaddr_np(thread) as usize - libc::pthread_get_stacksize_np(thread)
    }
}

/// Makes a first call with little stack inside a unit, `calls`. The body that is called looks up `needs` first: gives
/// what becomes of that.
fn call_inside_a_unit(compile_threads: usize, needs: &'static str) -> Result<(), LookupError> {
    let jit = LazyJitBuilder::new(Jit::builder().compile_threads(compile_threads))
        .partition(move |_| {
            assert_eq!(thread::current().name(), Some("orcane-first-call"));
            Vec::new()
        })
        .build()
        .unwrap();
    let order = jit.search_order();
    let look_up = |order: &SearchOrder, name: &str, session: &ExecutionSession| {
        session.lookup(order, vec![session.intern(name)]).map(|_| ())
    };
    let (found, needed) = mpsc::channel();
    let of_body = order.clone();
    let body = move |body: &SymbolName| {
        let work = move |session: &ExecutionSession| found.send(look_up(&of_body, needs, session)).unwrap();
        Box::new(Doing(body.clone(), work)) as Box<dyn MaterializationUnit>
    };
    let f = RedirectableFunction { name: jit.session().intern("f"), signature: None, body: Box::new(body) };
    jit.redefine_with(vec![f]).unwrap();
    let f = jit.lookup_address("f").unwrap();

    let define = |name: &str, work: Box<dyn FnOnce(&ExecutionSession) + Send>| {
        let name = jit.session().intern(name);
        let symbol = SymbolDeclaration { name: name.clone(), flags: SymbolFlags::FUNCTION, signature: None };
        let unit = Box::new(Doing(name, work));
        jit.main().create_tracker().unwrap().define(vec![UnitDefinition {
            symbols: [symbol].into_iter().collect(),
            unit,
            name: "unit".into(),
        }])
    };
    define("free", Box::new(|_| {})).unwrap();
    let (gave, given) = mpsc::channel();
    define(
        "calls",
        Box::new(move |_| {
            // SAFETY: calls go on at a function of this type.
            with_little_stack(&mut || gave.send(unsafe { at(f)() }).unwrap());
        }),
    )
    .unwrap();
    let session = jit.session().clone();
    let looks = thread::spawn(move || look_up(&order, "calls", &session));
    assert_eq!(given.recv_timeout(Duration::from_secs(60)), Ok(7), "it hangs, or has failed");
    looks.join().unwrap().unwrap();
    needed.recv().unwrap()
}

#[test]
fn lazy_04_inside_a_unit_that_is_waited_for_the_wait_is_refused_on_a_small_stack_too() {
    for compile_threads in [0, 1, 2] {
        let error = call_inside_a_unit(compile_threads, "calls").unwrap_err();
        assert!(matches!(*error.failures[0].cause, Cause::WaitCycle(_)), "{compile_threads}: {error}");
    }
}

#[test]
fn lazy_04_inside_a_unit_of_a_pool_of_one_a_small_stack_gets_a_spare_thread() {
    for compile_threads in [0, 1] {
        call_inside_a_unit(compile_threads, "free").unwrap();
    }
}
