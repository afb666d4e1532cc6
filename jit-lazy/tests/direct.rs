//! What a call compiles to: the body's address in the call where the body is final, the slot where it is not.

mod common;

use common::{Nullary, add, call, caller, constant, jit, redefine};
use jit_core::Jit;

#[derive(Debug, PartialEq, Eq)]
enum Call {
    /// To an address that the instruction names.
    Direct(u64),
    /// To what is in memory at an address, or in a register.
    Indirect,
}

/// The only call in the function at an address.
#[cfg(target_arch = "x86_64")]
fn only_call(function: u64) -> Call {
    use iced_x86::{Code, Decoder, DecoderOptions, Mnemonic};
    // SAFETY: the function is at most as long; it is in memory that goes on for a page at least.
    let bytes = unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(function as usize), 64) };
    let instructions = Decoder::with_ip(64, bytes, function, DecoderOptions::NONE).into_iter();
    let calls: Vec<_> = instructions
        .take_while(|one| one.mnemonic() != Mnemonic::Ret)
        .filter(|one| one.mnemonic() == Mnemonic::Call)
        .collect();
    let [call] = calls[..] else { panic!("{calls:?}") };
    match call.code() {
        Code::Call_rel32_64 => Call::Direct(call.near_branch_target()),
        _ => Call::Indirect,
    }
}

/// As on x86-64: `bl` and `blr` up to `ret`.
#[cfg(target_arch = "aarch64")]
fn only_call(function: u64) -> Call {
    // SAFETY: the function is at most as long; it is in memory that goes on for a page at least.
    let words = unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance::<u32>(function as usize), 32) };
    let own = words.iter().zip((function..).step_by(4)).take_while(|(word, _)| **word & 0xffff_fc1f != 0xd65f_0000);
    let call = |(word, place): (&u32, u64)| match word {
        _ if word >> 26 == 0b10_0101 => {
            // Words, as a signed number of 26 bits.
            let distance = i64::from((word << 6).cast_signed() >> 6) * 4;
            Some(Call::Direct(place.wrapping_add_signed(distance)))
        }
        _ if word & 0xffff_fc1f == 0xd63f_0000 => Some(Call::Indirect),
        _ => None,
    };
    let mut calls: Vec<_> = own.filter_map(call).collect();
    assert_eq!(calls.len(), 1, "{calls:?}");
    calls.remove(0)
}

fn body(jit: &Jit, name: &str) -> u64 {
    jit.lookup::<Nullary>(name).unwrap().address()
}

#[test]
fn a_caller_that_is_linked_after_a_final_body_is_ready_calls_it_directly() {
    let jit = jit();
    add(&jit, &constant("callee", 1));
    let callee = body(&jit, "callee");
    add(&jit, &caller("caller", "callee"));
    assert_eq!(only_call(body(&jit, "caller")), Call::Direct(callee));
    // So does the body of a lazy function.
    redefine(&jit, &caller("lazy", "callee")).unwrap();
    assert_eq!(only_call(body(&jit, "lazy")), Call::Direct(callee));
    assert_eq!((call(&jit, "caller"), call(&jit, "lazy")), (101, 101));
}

#[test]
fn functions_of_one_plain_module_call_each_other_directly() {
    let jit = jit();
    add(&jit, &format!("{}{}", caller("caller", "callee"), constant("callee", 1)));
    let caller = body(&jit, "caller");
    assert_eq!(only_call(caller), Call::Direct(body(&jit, "callee")));
}

#[test]
fn what_can_be_redirected_is_called_through_its_slot_though_its_body_is_ready() {
    let jit = jit();
    redefine(&jit, &constant("callee", 1)).unwrap();
    body(&jit, "callee");
    add(&jit, &caller("caller", "callee"));
    assert_eq!(only_call(body(&jit, "caller")), Call::Indirect);
    redefine(&jit, &constant("callee", 2)).unwrap();
    assert_eq!(call(&jit, "caller"), 102);
}
