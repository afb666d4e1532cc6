//! Threads, panics, thread-locals and output.
use std::cell::RefCell;
use std::collections::HashMap;
use std::panic::catch_unwind;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

thread_local! {
    static LOG: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

struct Noisy(&'static str);

impl Drop for Noisy {
    fn drop(&mut self) {
        println!("dropped {}", self.0);
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn main(argc: i32, _argv: *const *const u8) -> i32 {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    println!("{argc} arguments: {arguments:?}");
    let counts = Arc::new(Mutex::new(HashMap::new()));
    let (send, receive) = mpsc::channel();
    let threads: Vec<_> = (0..4)
        .map(|index| {
            let (counts, send) = (Arc::clone(&counts), send.clone());
            thread::Builder::new().name(format!("worker {index}")).spawn(move || {
                LOG.with_borrow_mut(|log| log.push(format!("{index}")));
                *counts.lock().unwrap().entry(index % 2).or_insert(0) += index;
                send.send((index, LOG.with_borrow(Vec::len))).unwrap();
            })
        })
        .collect();
    drop(send);
    let mut received: Vec<_> = receive.iter().collect();
    received.sort();
    for thread in threads {
        thread.unwrap().join().unwrap();
    }
    let mut counts: Vec<_> = counts.lock().unwrap().iter().map(|(key, value)| (*key, *value)).collect();
    counts.sort();
    println!("{received:?} {counts:?} {}", LOG.with_borrow(Vec::len));
    std::panic::set_hook(Box::new(|info| println!("panicked: {}", info.payload().downcast_ref::<&str>().unwrap_or(&"?"))));
    let result = catch_unwind(|| {
        let _noisy = Noisy("by the panic");
        let values: Vec<i32> = Vec::new();
        if values.is_empty() {
            panic!("nothing there");
        }
    });
    println!("{}", result.is_err());
    println!("{}", thread::spawn(|| panic!("in a thread")).join().is_err());
    println!("{:.3} {:?}", std::f64::consts::PI, "ünïcode".char_indices().last());
    6
}
