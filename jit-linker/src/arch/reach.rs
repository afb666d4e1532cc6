//! How far away a symbol may be from the code and data that refer to it.

use super::{Origin, Referent, aarch64, x86_64};
use crate::graph::EdgeKind;

/// Where a symbol may be for an edge to lead to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Reach {
    /// Anywhere: what stores the whole address, or goes through a GOT entry or a stub.
    Anywhere,
    /// Within 2 GiB of the place.
    Near,
    /// Below 2 GiB: code that is not position-independent.
    Low,
    /// In the graph: a short field, or a thread-local variable in the executable's own storage.
    Graph,
}

impl EdgeKind {
    /// Whether only AArch64's tiny code model has code refer so to data, which is within 1 MiB then.
    #[must_use]
    pub const fn is_tiny(self) -> bool {
        use aarch64::EdgeKind::{Adr21, GotLoad19, Load19, TlsEntry};
        use aarch64::EntryField;
        let Self::Aarch64(kind) = self else { return false };
        matches!(kind, Load19 | Adr21 | GotLoad19 | TlsEntry(_, EntryField::Adr21 | EntryField::Load19))
    }

    /// Where the symbol may be that an edge of this kind refers to.
    #[must_use]
    pub const fn reach(self) -> Reach {
        let ((referent, origin), width) = match self {
            Self::X86_64(kind) => {
                let (referent, origin, field) = kind.formula();
                ((referent, origin), x86_64_width(field))
            }
            Self::Aarch64(kind) => {
                let (referent, origin, field) = kind.formula();
                ((referent, origin), aarch64_width(field))
            }
        };
        match (referent, origin, width) {
            (Referent::TlsEntry | Referent::TlsOffset | Referent::TlsModuleOffset, ..) => Reach::Graph,
            (Referent::Symbol, _, Width::Short) => Reach::Graph,
            (Referent::Symbol, Origin::Zero, Width::Word) => Reach::Low,
            (Referent::Symbol, _, Width::Word) => Reach::Near,
            _ => Reach::Anywhere,
        }
    }
}

/// How much of a value a field checks.
enum Width {
    /// Less than 32 bits.
    Short,
    /// 32 bits, or the 33 of a page's distance.
    Word,
    /// All, or none: it holds a part of the value, and others hold the rest.
    Any,
}

const fn x86_64_width(field: x86_64::Field) -> Width {
    use x86_64::Field;
    match field {
        Field::Bits64 | Field::Less64 => Width::Any,
        Field::Unsigned32 | Field::Signed32 | Field::Less32 => Width::Word,
        Field::Signed16 | Field::Signed8 | Field::Either16 | Field::Either8 => Width::Short,
    }
}

const fn aarch64_width(field: aarch64::Field) -> Width {
    use aarch64::Field;
    match field {
        Field::Bits64
        | Field::Less64
        | Field::AdrpUnchecked
        | Field::Add12
        | Field::Load12
        | Field::LoadStore12(_)
        | Field::Move(_)
        | Field::Tls(_) => Width::Any,
        Field::Either32 | Field::Signed32 | Field::Adrp | Field::Less32 => Width::Word,
        Field::Either16
        | Field::Branch26
        | Field::Branch19
        | Field::Branch14
        | Field::Load19
        | Field::Load15
        | Field::Adr => Width::Short,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_reaches_as_far_as_its_field() {
        use x86_64::EdgeKind::{
            Branch32, Delta8, Delta32, GotLoad32, Pointer32Signed, Pointer64, TlsOffset32, TlsPairDelta32,
        };
        let cases = [
            (Pointer64, Reach::Anywhere),
            (GotLoad32, Reach::Anywhere),
            (Branch32, Reach::Anywhere),
            (TlsPairDelta32, Reach::Anywhere),
            (Delta32, Reach::Near),
            (Pointer32Signed, Reach::Low),
            (Delta8, Reach::Graph),
            (TlsOffset32, Reach::Graph),
        ];
        for (kind, reach) in cases {
            assert_eq!(EdgeKind::X86_64(kind).reach(), reach, "{kind:?}");
        }
        use aarch64::EdgeKind::{Adr21, Branch26, Page21, PageOffset12, Pointer32};
        let cases = [
            (Branch26, Reach::Anywhere),
            (PageOffset12, Reach::Anywhere),
            (Page21, Reach::Near),
            (Pointer32, Reach::Low),
            (Adr21, Reach::Graph),
        ];
        for (kind, reach) in cases {
            assert_eq!(EdgeKind::Aarch64(kind).reach(), reach, "{kind:?}");
        }
    }
}
