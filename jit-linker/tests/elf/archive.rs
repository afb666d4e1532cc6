//! Archives, with an index and without.

use std::path::Path;
use std::process::Command;

use jit_linker::format::archive::Archive;

use crate::compiler::run;

/// Archives an object with an index and without, and checks what both offer.
pub(crate) fn check_index(object: &[u8], offered: &[&str], others: &[&str]) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let member = folder.path().join("member.o");
    std::fs::write(&member, object).expect("it can be written");
    for operation in ["rcs", "rcS"] {
        let path = folder.path().join(operation).with_extension("a");
        run(Command::new("llvm-ar-22").arg(operation).arg(&path).arg(&member));
        let bytes = std::fs::read(&path).expect("it is there");
        let archive = Archive::parse(Path::new("test.a"), bytes.into()).expect("it is well-formed");
        let not_offered: Vec<_> = offered.iter().filter(|symbol| archive.member_with(symbol).is_none()).collect();
        assert!(not_offered.is_empty(), "{operation}: {not_offered:?}");
        let offered: Vec<_> = others.iter().filter(|symbol| archive.member_with(symbol).is_some()).collect();
        assert!(offered.is_empty(), "{operation}: {offered:?}");
    }
}
