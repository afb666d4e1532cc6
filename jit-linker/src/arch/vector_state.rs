//! The vector state of the processor, for routines that save all of it.

use std::arch::x86_64::{__cpuid, __cpuid_count};

/// State components, by bit of XCR0.
const X87: u32 = 1 << 0;
const SSE: u32 = 1 << 1;
const AVX: u32 = 1 << 2;
const AVX_512: u32 = 0b111 << 5;

/// Bytes of an `fxsave` area, and of the header that follows it in an `xsave` area.
const LEGACY_AREA: u64 = 512;
const HEADER: u64 = 64;

/// The leaf of `cpuid` that tells of state components.
const STATE_LEAF: u32 = 0xd;

/// What an x86-64 routine saves to keep every register of vectors: the x87, SSE, AVX and AVX-512 state, as far as the
/// system lets programs use it. AMX tiles are not in it: they carry no arguments, are used by no library unasked, and
/// take 8 KiB (Intel, Software Developer's Manual, volume 1, chapter 13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct VectorState {
    /// The components to save by `xsave`; 0 where there is only `fxsave`.
    pub components: u32,
    /// Bytes of the save area, which is aligned to 64 bytes, in the standard format. The compacted one is not larger.
    pub area: u64,
    /// Whether `xsavec` is there, which leaves out what is not in use.
    pub has_xsavec: bool,
}

impl VectorState {
    /// That of this processor.
    #[must_use]
    pub fn of_host() -> Self {
        const XSAVEC: u32 = 1 << 1;
        let components = usable_components();
        let has_xsavec = components != 0 && __cpuid_count(STATE_LEAF, 1).eax & XSAVEC != 0;
        Self { components, area: area_size(components), has_xsavec }
    }
}

/// The components that the system has enabled; 0 without `xsave`.
fn usable_components() -> u32 {
    const OSXSAVE: u32 = 1 << 27;
    if __cpuid(1).ecx & OSXSAVE == 0 {
        return 0;
    }
    let enabled: u32;
    // SAFETY: OSXSAVE says that `xgetbv` can be executed; it writes eax and edx only.
    unsafe {
        std::arch::asm!("xgetbv", in("ecx") 0, out("eax") enabled, out("edx") _, options(nomem, nostack, preserves_flags));
    }
    enabled & (X87 | SSE | AVX | AVX_512)
}

/// Bytes of the standard format: leaf 0xD gives each component's size and offset.
fn area_size(components: u32) -> u64 {
    if components == 0 {
        return LEGACY_AREA;
    }
    let end = |component: u32| {
        let leaf = __cpuid_count(STATE_LEAF, component);
        u64::from(leaf.eax) + u64::from(leaf.ebx)
    };
    let ends = (2..u32::BITS).filter(|component| components & (1 << component) != 0).map(end);
    ends.fold(LEGACY_AREA + HEADER, u64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_area_holds_what_the_processor_has_and_stays_within_a_page() {
        assert_eq!(area_size(0), 512);
        assert_eq!(area_size(X87 | SSE), 576);
        let VectorState { components, area, .. } = VectorState::of_host();
        if std::is_x86_feature_detected!("avx") {
            assert_eq!(components & AVX, AVX);
            // The upper halves of sixteen registers.
            assert!(area_size(X87 | SSE | AVX) >= 576 + 256);
        }
        assert!(area < 4096);
    }
}
