//! The library functions that Cranelift calls on its own account.

use std::ffi::{c_int, c_void};

use cranelift_codegen::ir::LibCall;

use crate::platform::tls;

unsafe extern "C" {
    fn ceilf(x: f32) -> f32;
    fn ceil(x: f64) -> f64;
    fn floorf(x: f32) -> f32;
    fn floor(x: f64) -> f64;
    fn truncf(x: f32) -> f32;
    fn trunc(x: f64) -> f64;
    fn nearbyintf(x: f32) -> f32;
    fn nearbyint(x: f64) -> f64;
    fn fmaf(x: f32, y: f32, z: f32) -> f32;
    fn fma(x: f64, y: f64, z: f64) -> f64;
    fn memcpy(to: *mut c_void, from: *const c_void, size: usize) -> *mut c_void;
    fn memset(to: *mut c_void, byte: c_int, size: usize) -> *mut c_void;
    fn memmove(to: *mut c_void, from: *const c_void, size: usize) -> *mut c_void;
    fn memcmp(a: *const c_void, b: *const c_void, size: usize) -> c_int;
}

/// Where a library function is in this process: these are found whatever symbols of the process
/// the code may see.
///
/// `None` for those that the settings of our instruction sets never ask for.
pub(crate) fn address(call: LibCall) -> Option<u64> {
    Some(match call {
        LibCall::CeilF32 => ceilf as *const () as u64,
        LibCall::CeilF64 => ceil as *const () as u64,
        LibCall::FloorF32 => floorf as *const () as u64,
        LibCall::FloorF64 => floor as *const () as u64,
        LibCall::TruncF32 => truncf as *const () as u64,
        LibCall::TruncF64 => trunc as *const () as u64,
        LibCall::NearestF32 => nearbyintf as *const () as u64,
        LibCall::NearestF64 => nearbyint as *const () as u64,
        LibCall::FmaF32 => fmaf as *const () as u64,
        LibCall::FmaF64 => fma as *const () as u64,
        LibCall::Memcpy => memcpy as *const () as u64,
        LibCall::Memset => memset as *const () as u64,
        LibCall::Memmove => memmove as *const () as u64,
        LibCall::Memcmp => memcmp as *const () as u64,
        LibCall::ElfTlsGetAddr => tls::get_address as *const () as u64,
        LibCall::Probestack | LibCall::ElfTlsGetOffset | LibCall::X86Pshufb => return None,
    })
}
