//! The gate on instructions, in the build that the tests have.
#![cfg(target_arch = "x86_64")]

use std::process::Command;

#[test]
fn no_workload_takes_more_instructions_than_is_checked_in() {
    let output = Command::new(env!("CARGO_BIN_EXE_benches")).arg("instructions").output().unwrap();
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    println!("{text}");
    assert!(output.status.success(), "{text}");
}
