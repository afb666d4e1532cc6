//! Every relocation of x86-64.

use crate::relocation::{ANY, CODE, Case, FAR, Formula, LOWEST, PAGE, check, link_at, store_32, store_64};
use crate::{X86_64, assemble};

const S32: (i64, i64) = (-(1 << 31), (1 << 31) - 1);
const S8: (i64, i64) = (-(1 << 7), (1 << 7) - 1);
const ADDRESSES: (i64, i64) = (LOWEST, i64::MAX);

fn case(source: &'static str, at: u64, formula: Formula, range: (i64, i64), store: fn(&mut [u8], i64)) -> Case {
    Case { source, at, formula, range, store, step: 1 }
}

#[test]
fn macho_20_x86_64_relocations_store_their_formula_up_to_the_edge_of_their_range() {
    use Formula::{Absolute, Data, DataAddress, GotEntry, Relative};
    let store_8 = |field: &mut [u8], value: i64| field[0] = value as u8;
    check(
        X86_64,
        &[
            case(".quad _t+5", 0, Absolute(5), ADDRESSES, store_64),
            case(".long _t+5", 0, Absolute(5), (LOWEST, (1 << 32) - 1), store_32),
            case(".quad L_data", 0, DataAddress, ADDRESSES, store_64),
            case(".long L_data", 0, DataAddress, (LOWEST, (1 << 32) - 1), store_32),
            // SIGNED: a displacement that ends the instruction, then one with 1, 2 and 4 bytes behind.
            case("movl _t+9(%rip), %eax", 2, Relative(9 - 4), S32, store_32),
            case("movb $1, _t(%rip)", 2, Relative(-5), S32, store_32),
            case("movb $1, _t+7(%rip)", 2, Relative(7 - 5), S32, store_32),
            case("movw $0x1234, _t(%rip)", 3, Relative(-6), S32, store_32),
            case("movl $0x12345678, _t(%rip)", 2, Relative(-8), S32, store_32),
            case("movl L_data(%rip), %eax", 2, Data(-4), S32, store_32),
            case("movl L_data+4(%rip), %eax", 2, Data(4 - 4), S32, store_32),
            case("movb $1, L_data(%rip)", 2, Data(-5), S32, store_32),
            case("movw $0x1234, L_data(%rip)", 3, Data(-6), S32, store_32),
            case("movl $0x12345678, L_data(%rip)", 2, Data(-8), S32, store_32),
            case("jrcxz _t", 1, Relative(-1), S8, store_8),
            // GOT: whatever is done with the entry.
            case("pushq _t@GOTPCREL(%rip)", 2, GotEntry(-4), S32, store_32),
            case("cmpq _t@GOTPCREL(%rip), %rax", 3, GotEntry(-4), S32, store_32),
            case("addq $1, _t@GOTPCREL+1(%rip)", 3, GotEntry(1 - 5), S32, store_32),
            case(".long _t@GOTPCREL+4", 0, GotEntry(0), S32, store_32),
            case(".long _t@GOTPCREL+7", 0, GotEntry(3), S32, store_32),
            // GOT_LOAD and TLV, of what is far.
            case("movq _t@GOTPCREL(%rip), %rax", 3, GotEntry(-4), S32, store_32),
            case("movq _t@TLVP(%rip), %rdi", 3, GotEntry(-4), S32, store_32),
            // SUBTRACTOR: what is subtracted is in the field's atom.
            case("_here: .quad L_data - _here + 3", 0, Data(3), ANY, store_64),
            case("_here: .long L_data - _here - 3", 0, Data(-3), S32, store_32),
            case("_here: .long 0\n.long L_data - _here", 4, Data(4), S32, store_32),
        ],
    );
}

#[test]
fn macho_03_a_load_from_the_got_becomes_an_address_where_the_target_is_near() {
    for (source, register) in [("movq _t@GOTPCREL(%rip), %rax", 0x05), ("movq _t@TLVP(%rip), %rdi", 0x3d)] {
        let object = assemble(X86_64, &format!("{source}\n.subsections_via_symbols\n"));
        for distance in [S32.0, -1, 0x1234, S32.1] {
            let (code, _) = link_at(&object, (CODE + 7).wrapping_add_signed(distance), [CODE, 0x3000, FAR]).unwrap();
            let mut lea = vec![0x48, 0x8d, register];
            lea.extend((distance as i32).to_le_bytes());
            assert_eq!(code[..7], lea, "{source} {distance:#x}");
        }
        let got = CODE + 0x10_0000;
        let (code, data) = link_at(&object, FAR, [CODE, 0x3000, got]).unwrap();
        assert_eq!(code[1], 0x8b, "{source}");
        assert_eq!(data, FAR.to_le_bytes(), "{source}");
    }
}

#[test]
fn a_branch_goes_straight_where_it_can_and_through_a_stub_else() {
    for (source, at) in [("callq _t", 1), ("jmp _t", 1), ("jne _t", 2)] {
        let object = assemble(X86_64, &format!("{source}\n.subsections_via_symbols\n"));
        let end = CODE + at + 4;
        for distance in [S32.0, 0, S32.1] {
            let got = CODE + PAGE;
            let (code, _) = link_at(&object, end.wrapping_add_signed(distance), [CODE, 0x3000, got]).unwrap();
            assert_eq!(code[at as usize..][..4], (distance as i32).to_le_bytes(), "{source}");
        }
        for distance in [S32.0 - 1, S32.1 + 1] {
            let (got, target) = (CODE + PAGE, end.wrapping_add_signed(distance));
            let (code, data) = link_at(&object, target, [CODE, 0x3000, got]).unwrap();
            let field = code[at as usize..][..4].try_into().expect("four bytes");
            let stub = end.wrapping_add_signed(i32::from_le_bytes(field).into());
            let stub = &code[(stub - CODE) as usize..][..16];
            assert_eq!(stub[..6], [0xf3, 0x0f, 0x1e, 0xfa, 0xff, 0x25], "{source}: endbr64; jmp [rip + ...]");
            assert_eq!(data, target.to_le_bytes(), "{source}");
        }
    }
}
