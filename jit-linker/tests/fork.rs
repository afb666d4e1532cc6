//! Parent and child after `fork`. A process of its own, that has one thread when it forks unless
//! a test says otherwise.

#[cfg(target_os = "linux")]
mod forked;
#[cfg(target_os = "linux")]
mod machine_code;

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
fn main() {
    linux::run();
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    use jit_linker::LinkGraph;
    use jit_linker::arch::Architecture;
    use jit_linker::link::prepare;
    use jit_linker::memory::{Allocation, FinalizedAllocation, MemoryManager, SegmentKind, SlabManager, SlotBlock};

    use crate::forked::{Child, Peer, wait_for};
    use crate::machine_code::{address, call, code, link, returning};

    pub(crate) fn run() {
        let tests: [(&str, fn()); 16] = [
            ("each_runs_its_own_code", each_runs_its_own_code),
            ("a_child_of_a_child_runs_its_own_code", a_child_of_a_child_runs_its_own_code),
            (
                "what_a_child_may_run_is_used_again_when_it_has_exited",
                what_a_child_may_run_is_used_again_when_it_has_exited,
            ),
            ("what_two_children_may_run_waits_for_both", what_two_children_may_run_waits_for_both),
            ("what_a_grandchild_may_run_waits_for_it", what_a_grandchild_may_run_waits_for_it),
            ("exec_ends_a_childs_claim", exec_ends_a_childs_claim),
            ("code_made_after_the_fork_is_nobody_elses", code_made_after_the_fork_is_nobody_elses),
            ("what_is_written_at_once_is_nobody_elses", what_is_written_at_once_is_nobody_elses),
            ("a_limit_on_files_ends_no_process", a_limit_on_files_ends_no_process),
            ("large_code_is_each_ones_own", large_code_is_each_ones_own),
            ("who_may_not_run_what_it_wrote_links_large_code", who_may_not_run_what_it_wrote_links_large_code),
            ("slots_and_data_are_independent", slots_and_data_are_independent),
            ("an_open_allocation_stays_with_the_parent", an_open_allocation_stays_with_the_parent),
            (
                "a_manager_dropped_in_the_child_is_whole_in_the_parent",
                a_manager_dropped_in_the_child_is_whole_in_the_parent,
            ),
            ("a_fork_among_busy_threads_leaves_no_lock_held", a_fork_among_busy_threads_leaves_no_lock_held),
            ("nothing_is_left_of_managers_and_children", nothing_is_left_of_managers_and_children),
        ];
        let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
        for (name, test) in tests.into_iter().filter(|(name, _)| name.contains(&filter)) {
            test();
            println!("test {name} ... ok");
        }
    }

    fn manager() -> Arc<dyn MemoryManager> {
        Arc::new(SlabManager::new().expect("address space"))
    }

    fn each_runs_its_own_code() {
        let manager = manager();
        let (first, second) = (link(&manager, 1), link(&manager, 2));
        let (first_address, second_address) = (address(&first), address(&second));
        let mut first = Some(first);
        let mut second = Some(second);
        let mut child = Child::new(|parent| {
            let third = link(&manager, 100);
            second = None;
            let more: Vec<_> = (200..1200).map(|value| link(&manager, value)).collect();
            assert!(more.iter().all(|function| address(function) != second_address));
            parent.go_on();
            parent.wait();
            assert_eq!(call(first.as_ref().expect("kept here")), 1);
            assert_eq!(call(&third), 100);
            assert!(more.iter().zip(200..).all(|(function, value)| call(function) == value));
            assert_eq!(call(&link(&manager, 300)), 300);
        });
        child.peer.wait();
        first = None;
        let more: Vec<_> = (2000..3000).map(|value| link(&manager, value)).collect();
        assert!(more.iter().all(|function| address(function) != first_address));
        assert_eq!(call(second.as_ref().expect("kept here")), 2);
        child.peer.go_on();
        child.succeeds();
        assert!(more.iter().zip(2000..).all(|(function, value)| call(function) == value));
        assert_eq!(call(second.as_ref().expect("kept here")), 2);
        drop(first);
    }

    fn a_child_of_a_child_runs_its_own_code() {
        let manager = manager();
        let first = link(&manager, 1);
        let child = Child::new(|_| {
            let mut second = Some(link(&manager, 2));
            let grandchild = Child::new(|_| {
                let third = link(&manager, 3);
                let inherited = second.take().expect("inherited");
                assert_eq!((call(&first), call(&inherited), call(&third)), (1, 2, 3));
                assert_ne!(address(&inherited), address(&third));
                drop(inherited);
                assert_eq!(call(&link(&manager, 4)), 4);
            });
            grandchild.succeeds();
            assert_eq!((call(&first), second.as_ref().map(call)), (1, Some(2)));
        });
        child.succeeds();
        assert_eq!(call(&first), 1);
    }

    fn what_a_child_may_run_is_used_again_when_it_has_exited() {
        let manager = manager();
        let function = link(&manager, 1);
        let place = address(&function);
        let mut child = Child::new(Peer::wait);
        drop(function);
        let other = link(&manager, 2);
        assert_ne!(address(&other), place, "the child may run what is there");
        child.peer.go_on();
        child.succeeds();
        assert_eq!(address(&link(&manager, 3)), place);
        assert_eq!(manager.statistics().allocations, 1);
    }

    fn what_two_children_may_run_waits_for_both() {
        for first_to_exit in [0, 1] {
            let manager = manager();
            let function = link(&manager, 1);
            let place = address(&function);
            let mut children = vec![Child::new(Peer::wait), Child::new(Peer::wait)];
            drop(function);
            let mut child = children.remove(first_to_exit);
            child.peer.go_on();
            child.succeeds();
            let other = link(&manager, 2);
            assert_ne!(address(&other), place, "the other child may run what is there");
            let mut child = children.remove(0);
            child.peer.go_on();
            child.succeeds();
            assert_eq!(address(&link(&manager, 3)), place);
        }
    }

    fn what_a_grandchild_may_run_waits_for_it() {
        // SAFETY: makes this process the one that waits for grandchildren whose parent has exited.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }, 0);
        let manager = manager();
        let function = link(&manager, 1);
        let place = address(&function);
        let (mut grandchild, mut parent) = Peer::pair();
        let mut child = Child::new(|peer| {
            let grandchild = Child::new(|_| parent.wait());
            peer.writer.write_all(&grandchild.id.to_ne_bytes()).expect("the parent reads");
        });
        let mut id = [0; 4];
        child.peer.reader.read_exact(&mut id).expect("the child sends");
        child.succeeds();
        drop(function);
        let other = link(&manager, 2);
        assert_ne!(address(&other), place, "the grandchild may run what is there");
        grandchild.go_on();
        wait_for(libc::pid_t::from_ne_bytes(id));
        assert_eq!(address(&link(&manager, 3)), place);
    }

    fn exec_ends_a_childs_claim() {
        let manager = manager();
        let function = link(&manager, 1);
        let place = address(&function);
        let mut child = Child::new(|parent| {
            // SAFETY: replaces a descriptor of this process, which is about to be another program;
            // the strings are C strings, the list ends with null.
            unsafe {
                assert_eq!(libc::dup2(parent.reader.as_raw_fd(), 0), 0);
                libc::execv(c"/bin/cat".as_ptr(), [c"cat".as_ptr(), std::ptr::null()].as_ptr());
            }
        });
        let rest = child.peer.reader.read_to_end(&mut Vec::new()).expect("a pipe");
        assert_eq!(rest, 0, "the child closes its end by calling exec");
        drop(function);
        // The system closes the child's descriptors in an order of its own: the manager's may be a
        // moment later than the one above.
        let deadline = Instant::now() + Duration::from_secs(60);
        while address(&link(&manager, 2)) != place {
            assert!(Instant::now() < deadline, "the child still holds what it can no longer run");
            std::thread::yield_now();
        }
        let Child { id, peer } = child;
        drop(peer);
        wait_for(id);
    }

    fn code_made_after_the_fork_is_nobody_elses() {
        let manager = manager();
        let first = link(&manager, 1);
        let mut child = Child::new(Peer::wait);
        for size in [64, 4 << 20] {
            let shape = code(size);
            let place = || Allocation::new(&manager, &shape).expect("memory").address(SegmentKind::Code);
            assert_eq!(place(), place(), "the child never had what is freed");
        }
        child.peer.go_on();
        child.succeeds();
        assert_eq!(call(&first), 1);
    }

    /// Constants that are all the same byte: whether they are.
    fn link_constants(manager: &Arc<dyn MemoryManager>, byte: u8) -> impl Fn() -> bool {
        const SIZE: usize = 1 << 20;
        let mut graph = LinkGraph::new("constants", Architecture::host().expect("tests run"));
        graph.add_block(SegmentKind::ReadOnly, &vec![byte; SIZE], 16).expect("it is small");
        let allocated = prepare(graph).and_then(|prepared| prepared.allocate(manager)).expect("memory");
        let linked = allocated.fix_up().and_then(|fixed| fixed.finalize()).expect("it can be linked");
        move || {
            let start = linked.range(SegmentKind::ReadOnly).start;
            let start = std::ptr::with_exposed_provenance::<u8>(start as usize);
            // SAFETY: linked memory, which lives as long as `linked`.
            unsafe { std::slice::from_raw_parts(start, SIZE) }.iter().all(|there| *there == byte)
        }
    }

    fn what_is_written_at_once_is_nobody_elses() {
        let manager = manager();
        let (first, second) = (link_constants(&manager, 1), link_constants(&manager, 2));
        let mut child = Child::new(|parent| {
            let third = link_constants(&manager, 3);
            parent.go_on();
            parent.wait();
            assert!(first() && second() && third());
        });
        child.peer.wait();
        let fourth = link_constants(&manager, 4);
        child.peer.go_on();
        child.succeeds();
        assert!(first() && second() && fourth());
    }

    fn a_limit_on_files_ends_no_process() {
        let limit = |bytes| {
            let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: both take a limit of ours.
            unsafe {
                assert_eq!(libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit), 0);
                limit.rlim_cur = bytes;
                assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
            }
        };
        Child::new(|_| {
            limit(64 << 20);
            let manager = manager();
            let range = manager.range().expect("a slab manager has one");
            assert_eq!(range.end - range.start, 64 << 20);
            let first = link_constants(&manager, 1);
            // What was mapped may still be written.
            limit(4096);
            let second = link_constants(&manager, 2);
            assert!(first() && second());
            let error = Allocation::new(&self::manager(), &code(16)).expect_err("a file may not be so large");
            assert!(error.to_string().starts_with("cannot size a memory file: "), "{error}");
        })
        .succeeds();
    }

    /// A function among so much else that it has pages of its own.
    fn link_large(manager: &Arc<dyn MemoryManager>, value: u16) -> FinalizedAllocation {
        let bytes = returning(value);
        let mut allocation = Allocation::new(manager, &code(5 << 20)).expect("memory");
        allocation.working(SegmentKind::Code)[..bytes.len()].copy_from_slice(&bytes);
        allocation.finalize().expect("it can be published")
    }

    fn large_code_is_each_ones_own() {
        let manager = manager();
        let (kept, small) = (link_large(&manager, 1), link(&manager, 2));
        let mut given = Some(link_large(&manager, 3));
        let open = Allocation::new(&manager, &code(3 << 20)).expect("memory");
        let mut open = Some(open);
        let place = given.as_ref().map(address);
        let mut child = Child::new(|parent| {
            given = None;
            open = None;
            let mine = link_large(&manager, 4);
            assert_eq!(Some(address(&mine)), place);
            parent.go_on();
            parent.wait();
            assert_eq!((call(&kept), call(&small), call(&mine), call(&link(&manager, 5))), (1, 2, 4, 5));
        });
        child.peer.wait();
        assert_eq!(given.as_ref().map(call), Some(3));
        given = None;
        let mine = link_large(&manager, 6);
        assert_eq!(Some(address(&mine)), place, "the child has its own");
        open.take().expect("the parent's").finalize().expect("it can be published");
        child.peer.go_on();
        child.succeeds();
        assert_eq!((call(&kept), call(&small), call(&mine)), (1, 2, 6));
        drop(given);
    }

    fn who_may_not_run_what_it_wrote_links_large_code() {
        Child::new(|_| {
            let manager = manager();
            let before = link_large(&manager, 1);
            // SAFETY: takes numbers, and concerns this process alone.
            let refused = unsafe { libc::prctl(libc::PR_SET_MDWE, libc::PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) };
            if refused != 0 {
                assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EINVAL), "Linux before 6.3");
                return;
            }
            let after = link_large(&manager, 2);
            assert_eq!((call(&before), call(&after)), (1, 2));
            drop((before, after));
            assert_eq!(manager.statistics().bytes, [0; 3]);
        })
        .succeeds();
    }

    extern "C" fn one() -> u32 {
        1
    }

    extern "C" fn two() -> u32 {
        2
    }

    extern "C" fn three() -> u32 {
        3
    }

    fn slots_and_data_are_independent() {
        let manager = manager();
        let slots = SlotBlock::new(&manager, Architecture::host().expect("tests run")).expect("memory");
        slots.store(3, one as *const () as u64);
        let call_stub = || {
            let stub = std::ptr::with_exposed_provenance::<()>(slots.stub_address(3) as usize);
            // SAFETY: the slot holds the address of a function of this type.
            unsafe { std::mem::transmute::<*const (), extern "C" fn() -> u32>(stub)() }
        };
        let mut child = Child::new(|parent| {
            slots.store(3, two as *const () as u64);
            assert_eq!(call_stub(), 2);
            parent.go_on();
            parent.wait();
            assert_eq!(call_stub(), 2);
            let own = SlotBlock::new(&manager, Architecture::host().expect("tests run")).expect("memory");
            own.store(0, 9);
            assert_eq!(own.load(0), 9);
        });
        child.peer.wait();
        assert_eq!(call_stub(), 1);
        slots.store(3, three as *const () as u64);
        assert_eq!(call_stub(), 3);
        child.peer.go_on();
        child.succeeds();
        assert_eq!(call_stub(), 3);
    }

    fn an_open_allocation_stays_with_the_parent() {
        let manager = manager();
        let open = Allocation::new(&manager, &code(16)).expect("memory");
        let mut open = Some(open);
        let child = Child::new(|_| {
            open.take().expect("inherited").finalize().expect_err("the parent's");
            assert_eq!(call(&link(&manager, 5)), 5);
        });
        child.succeeds();
        open.take().expect("still ours").finalize().expect("the parent goes on");
    }

    fn a_manager_dropped_in_the_child_is_whole_in_the_parent() {
        let manager = manager();
        let functions: Vec<_> = (0..100).map(|value| link(&manager, value)).collect();
        let mut functions = Some(functions);
        let mut manager = Some(manager);
        let child = Child::new(|_| {
            let new = link(manager.as_ref().expect("inherited"), 7);
            assert_eq!(call(&new), 7);
            (functions, manager) = (None, None);
        });
        child.succeeds();
        let functions = functions.expect("still ours");
        assert!(functions.iter().zip(0..).all(|(function, value)| call(function) == value));
        assert_eq!(call(&link(manager.as_ref().expect("still ours"), 500)), 500);
    }

    fn a_fork_among_busy_threads_leaves_no_lock_held() {
        let managers: Vec<_> = (0..3).map(|_| manager()).collect();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let link_and_call = |manager| {
                while !done.load(Ordering::Relaxed) {
                    assert_eq!(call(&link(manager, 1)), 1);
                }
            };
            let threads: Vec<_> = managers.iter().map(|manager| scope.spawn(move || link_and_call(manager))).collect();
            let forks = if cfg!(target_arch = "aarch64") { 10 } else { 100 };
            let all_right = catch_unwind(AssertUnwindSafe(|| {
                for _ in 0..forks {
                    let child = Child::new(|_| {
                        assert!(managers.iter().all(|manager| call(&link(manager, 2)) == 2));
                    });
                    child.succeeds();
                }
            }));
            done.store(true, Ordering::Relaxed);
            // Joined, they are gone: the scope ends before their stacks do, which the next test counts.
            threads.into_iter().for_each(|thread| thread.join().expect("it calls what it linked"));
            all_right.expect("all children succeed");
        });
    }

    fn nothing_is_left_of_managers_and_children() {
        let held = || {
            let descriptors = std::fs::read_dir("/proc/self/fd").expect("Linux has it").count();
            let maps = std::fs::read_to_string("/proc/self/maps").expect("Linux has it");
            (descriptors, maps.lines().filter(|line| line.contains("jit-code") || line.contains("---p")).count())
        };
        let round = || {
            let manager = manager();
            let function = link(&manager, 1);
            for _ in 0..10 {
                Child::new(|_| assert_eq!(call(&function), 1)).succeeds();
            }
        };
        round();
        let before = held();
        for _ in 0..5 {
            round();
        }
        assert_eq!(held(), before);
    }
}
