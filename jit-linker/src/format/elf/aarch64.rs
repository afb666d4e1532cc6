//! The relocations of AArch64, after AAELF64.

use object::elf::*;

use super::relocation::Meaning;
use crate::arch::aarch64::{EdgeKind, EntryField, Move, MoveCheck, TlsField, TlsWords};

/// A relocation that AAELF64 once gave the number of none.
const R_AARCH64_NONE_OLD: u32 = 256;

const fn take(group: u8, check: MoveCheck) -> Move {
    Move { group, check }
}

/// What a relocation means.
pub(super) fn meaning(relocation: u32) -> Meaning {
    use MoveCheck::{None, Signed, Unsigned};
    let kind = match relocation {
        // The last three mark instructions for linkers that rewrite them.
        R_AARCH64_NONE
        | R_AARCH64_NONE_OLD
        | R_AARCH64_TLSDESC_LDR
        | R_AARCH64_TLSDESC_ADD
        | R_AARCH64_TLSDESC_CALL => return Meaning::Nothing,
        R_AARCH64_ABS64 => EdgeKind::Pointer64,
        R_AARCH64_ABS32 => EdgeKind::Pointer32,
        R_AARCH64_ABS16 => EdgeKind::Pointer16,
        R_AARCH64_PREL64 => EdgeKind::Delta64,
        R_AARCH64_PREL32 => EdgeKind::Delta32,
        R_AARCH64_PREL16 => EdgeKind::Delta16,
        R_AARCH64_PLT32 => EdgeKind::Plt32,
        R_AARCH64_GOTPCREL32 => EdgeKind::GotDelta32,

        R_AARCH64_MOVW_UABS_G0 => EdgeKind::Move(take(0, Unsigned)),
        R_AARCH64_MOVW_UABS_G0_NC => EdgeKind::Move(take(0, None)),
        R_AARCH64_MOVW_UABS_G1 => EdgeKind::Move(take(1, Unsigned)),
        R_AARCH64_MOVW_UABS_G1_NC => EdgeKind::Move(take(1, None)),
        R_AARCH64_MOVW_UABS_G2 => EdgeKind::Move(take(2, Unsigned)),
        R_AARCH64_MOVW_UABS_G2_NC => EdgeKind::Move(take(2, None)),
        R_AARCH64_MOVW_UABS_G3 => EdgeKind::Move(take(3, None)),
        R_AARCH64_MOVW_SABS_G0 => EdgeKind::Move(take(0, Signed)),
        R_AARCH64_MOVW_SABS_G1 => EdgeKind::Move(take(1, Signed)),
        R_AARCH64_MOVW_SABS_G2 => EdgeKind::Move(take(2, Signed)),
        R_AARCH64_MOVW_PREL_G0 => EdgeKind::MoveDelta(take(0, Signed)),
        R_AARCH64_MOVW_PREL_G0_NC => EdgeKind::MoveDelta(take(0, None)),
        R_AARCH64_MOVW_PREL_G1 => EdgeKind::MoveDelta(take(1, Signed)),
        R_AARCH64_MOVW_PREL_G1_NC => EdgeKind::MoveDelta(take(1, None)),
        R_AARCH64_MOVW_PREL_G2 => EdgeKind::MoveDelta(take(2, Signed)),
        R_AARCH64_MOVW_PREL_G2_NC => EdgeKind::MoveDelta(take(2, None)),
        R_AARCH64_MOVW_PREL_G3 => EdgeKind::MoveDelta(take(3, None)),

        R_AARCH64_LD_PREL_LO19 => EdgeKind::Load19,
        R_AARCH64_ADR_PREL_LO21 => EdgeKind::Adr21,
        R_AARCH64_ADR_PREL_PG_HI21 => EdgeKind::Page21,
        R_AARCH64_ADR_PREL_PG_HI21_NC => EdgeKind::Page21Unchecked,
        R_AARCH64_ADD_ABS_LO12_NC => EdgeKind::PageOffset12,
        R_AARCH64_LDST8_ABS_LO12_NC => EdgeKind::LoadStorePageOffset12(0),
        R_AARCH64_LDST16_ABS_LO12_NC => EdgeKind::LoadStorePageOffset12(1),
        R_AARCH64_LDST32_ABS_LO12_NC => EdgeKind::LoadStorePageOffset12(2),
        R_AARCH64_LDST64_ABS_LO12_NC => EdgeKind::LoadStorePageOffset12(3),
        R_AARCH64_LDST128_ABS_LO12_NC => EdgeKind::LoadStorePageOffset12(4),
        R_AARCH64_TSTBR14 => EdgeKind::TestBranch14,
        R_AARCH64_CONDBR19 => EdgeKind::CondBranch19,
        R_AARCH64_JUMP26 | R_AARCH64_CALL26 => EdgeKind::Branch26,

        R_AARCH64_GOT_LD_PREL19 => EdgeKind::GotLoad19,
        R_AARCH64_ADR_GOT_PAGE => EdgeKind::GotPage21,
        R_AARCH64_LD64_GOT_LO12_NC => EdgeKind::GotPageOffset12,
        R_AARCH64_LD64_GOTPAGE_LO15 => EdgeKind::GotPageOffset15,
        R_AARCH64_LD64_GOTOFF_LO15 => EdgeKind::GotOffset15,
        _ => return tls_meaning(relocation),
    };
    Meaning::Edge(crate::graph::EdgeKind::Aarch64(kind))
}

fn tls_meaning(relocation: u32) -> Meaning {
    use EntryField::{Add12, Adr21, Load12, Load19, Page21};
    use MoveCheck::{None, Signed};
    use TlsField::{AddHigh12, LoadStore12, LoadStore12Unchecked};
    let entry = EdgeKind::TlsEntry;
    let (offset, in_module) = (EdgeKind::TlsOffset, EdgeKind::TlsModuleOffset);
    let kind = match relocation {
        R_AARCH64_TLSGD_ADR_PREL21 => entry(TlsWords::Pair, Adr21),
        R_AARCH64_TLSGD_ADR_PAGE21 => entry(TlsWords::Pair, Page21),
        R_AARCH64_TLSGD_ADD_LO12_NC => entry(TlsWords::Pair, Add12),
        R_AARCH64_TLSLD_ADR_PREL21 => entry(TlsWords::Module, Adr21),
        R_AARCH64_TLSLD_ADR_PAGE21 => entry(TlsWords::Module, Page21),
        R_AARCH64_TLSLD_ADD_LO12_NC => entry(TlsWords::Module, Add12),
        R_AARCH64_TLSIE_ADR_GOTTPREL_PAGE21 => entry(TlsWords::Offset, Page21),
        R_AARCH64_TLSIE_LD64_GOTTPREL_LO12_NC => entry(TlsWords::Offset, Load12),
        R_AARCH64_TLSIE_LD_GOTTPREL_PREL19 => entry(TlsWords::Offset, Load19),
        R_AARCH64_TLSDESC_LD_PREL19 => entry(TlsWords::Descriptor, Load19),
        R_AARCH64_TLSDESC_ADR_PREL21 => entry(TlsWords::Descriptor, Adr21),
        R_AARCH64_TLSDESC_ADR_PAGE21 => entry(TlsWords::Descriptor, Page21),
        R_AARCH64_TLSDESC_LD64_LO12 => entry(TlsWords::Descriptor, Load12),
        R_AARCH64_TLSDESC_ADD_LO12 => entry(TlsWords::Descriptor, Add12),

        R_AARCH64_TLSLE_MOVW_TPREL_G2 => offset(TlsField::Move(take(2, Signed))),
        R_AARCH64_TLSLE_MOVW_TPREL_G1 => offset(TlsField::Move(take(1, Signed))),
        R_AARCH64_TLSLE_MOVW_TPREL_G1_NC => offset(TlsField::Move(take(1, None))),
        R_AARCH64_TLSLE_MOVW_TPREL_G0 => offset(TlsField::Move(take(0, Signed))),
        R_AARCH64_TLSLE_MOVW_TPREL_G0_NC => offset(TlsField::Move(take(0, None))),
        R_AARCH64_TLSLE_ADD_TPREL_HI12 => offset(AddHigh12),
        R_AARCH64_TLSLE_ADD_TPREL_LO12 => offset(TlsField::Add12),
        R_AARCH64_TLSLE_ADD_TPREL_LO12_NC => offset(TlsField::Add12Unchecked),
        R_AARCH64_TLSLE_LDST8_TPREL_LO12 => offset(LoadStore12(0)),
        R_AARCH64_TLSLE_LDST8_TPREL_LO12_NC => offset(LoadStore12Unchecked(0)),
        R_AARCH64_TLSLE_LDST16_TPREL_LO12 => offset(LoadStore12(1)),
        R_AARCH64_TLSLE_LDST16_TPREL_LO12_NC => offset(LoadStore12Unchecked(1)),
        R_AARCH64_TLSLE_LDST32_TPREL_LO12 => offset(LoadStore12(2)),
        R_AARCH64_TLSLE_LDST32_TPREL_LO12_NC => offset(LoadStore12Unchecked(2)),
        R_AARCH64_TLSLE_LDST64_TPREL_LO12 => offset(LoadStore12(3)),
        R_AARCH64_TLSLE_LDST64_TPREL_LO12_NC => offset(LoadStore12Unchecked(3)),
        R_AARCH64_TLSLE_LDST128_TPREL_LO12 => offset(LoadStore12(4)),
        R_AARCH64_TLSLE_LDST128_TPREL_LO12_NC => offset(LoadStore12Unchecked(4)),

        R_AARCH64_TLSLD_MOVW_DTPREL_G2 => in_module(TlsField::Move(take(2, Signed))),
        R_AARCH64_TLSLD_MOVW_DTPREL_G1 => in_module(TlsField::Move(take(1, Signed))),
        R_AARCH64_TLSLD_MOVW_DTPREL_G1_NC => in_module(TlsField::Move(take(1, None))),
        R_AARCH64_TLSLD_MOVW_DTPREL_G0 => in_module(TlsField::Move(take(0, Signed))),
        R_AARCH64_TLSLD_MOVW_DTPREL_G0_NC => in_module(TlsField::Move(take(0, None))),
        R_AARCH64_TLSLD_ADD_DTPREL_HI12 => in_module(AddHigh12),
        R_AARCH64_TLSLD_ADD_DTPREL_LO12 => in_module(TlsField::Add12),
        R_AARCH64_TLSLD_ADD_DTPREL_LO12_NC => in_module(TlsField::Add12Unchecked),
        R_AARCH64_TLSLD_LDST8_DTPREL_LO12 => in_module(LoadStore12(0)),
        R_AARCH64_TLSLD_LDST8_DTPREL_LO12_NC => in_module(LoadStore12Unchecked(0)),
        R_AARCH64_TLSLD_LDST16_DTPREL_LO12 => in_module(LoadStore12(1)),
        R_AARCH64_TLSLD_LDST16_DTPREL_LO12_NC => in_module(LoadStore12Unchecked(1)),
        R_AARCH64_TLSLD_LDST32_DTPREL_LO12 => in_module(LoadStore12(2)),
        R_AARCH64_TLSLD_LDST32_DTPREL_LO12_NC => in_module(LoadStore12Unchecked(2)),
        R_AARCH64_TLSLD_LDST64_DTPREL_LO12 => in_module(LoadStore12(3)),
        R_AARCH64_TLSLD_LDST64_DTPREL_LO12_NC => in_module(LoadStore12Unchecked(3)),
        R_AARCH64_TLSLD_LDST128_DTPREL_LO12 => in_module(LoadStore12(4)),
        R_AARCH64_TLSLD_LDST128_DTPREL_LO12_NC => in_module(LoadStore12Unchecked(4)),
        _ => return Meaning::Unsupported,
    };
    Meaning::Edge(crate::graph::EdgeKind::Aarch64(kind))
}
