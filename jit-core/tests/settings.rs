//! Settings of Cranelift's, through the builder.
#![cfg(feature = "cranelift")]

use jit_core::{Error, Jit, OptLevel};

#[test]
fn settings_reach_cranelift_but_for_those_that_orcane_relies_on() {
    let builder = Jit::builder().opt_level(OptLevel::None).setting("is_pic", "false").setting("opt_level", "speed");
    let jit = builder.setting("enable_nan_canonicalization", "true").build().unwrap();
    let flags = jit.isa().flags();
    assert!(flags.enable_nan_canonicalization() && flags.is_pic());
    assert_eq!(flags.opt_level().to_string(), "none");
}

#[test]
fn settings_of_the_instruction_set() {
    let name = if cfg!(target_arch = "x86_64") { "has_popcnt" } else { "has_lse" };
    for value in ["true", "false"] {
        let jit = Jit::builder().setting(name, value).build().unwrap();
        let flag = jit.isa().isa_flags().into_iter().find(|flag| flag.name == name).unwrap();
        assert_eq!(flag.value_string(), value);
    }
}

#[test]
fn a_target_whose_functions_are_called_otherwise_is_refused() {
    let windows = format!("{}-pc-windows-msvc", std::env::consts::ARCH);
    for target in [&windows, "aarch64_be-unknown-linux-gnu"] {
        let result = Jit::builder().target(target.parse().unwrap()).build();
        assert!(matches!(result, Err(Error::Target(_))), "{target}");
    }
}

#[test]
fn powers_of_two_that_no_function_can_have_are_refused() {
    for name in ["log2_min_function_alignment", "bb_padding_log2_minus_one", "probestack_size_log2"] {
        for value in ["17", "31", "63", "200"] {
            let error = Jit::builder().setting(name, value).build().err().map(|error| error.to_string());
            assert!(error.is_some_and(|error| error.contains(name) && error.contains(value)), "{name} {value}");
        }
        Jit::builder().setting(name, "12").build().unwrap();
    }
}

#[test]
fn what_is_no_setting_is_an_error() {
    for (name, value) in [("no_such_setting", "true"), ("enable_nan_canonicalization", "perhaps")] {
        assert!(matches!(Jit::builder().setting(name, value).build(), Err(Error::Target(_))), "{name} {value}");
    }
}
