//! The instructions that are tried, by type. Left out is what a back end or the interpreter has not, and what shows the
//! bits of a NaN.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Type, Value, types};
use cranelift_frontend::FunctionBuilder;

use crate::choices::Choices;

pub(crate) const SCALARS: [Type; 9] =
    [types::I64, types::I32, types::I16, types::I8, types::I128, types::F64, types::F32, types::F16, types::F128];
pub(crate) const VECTORS: [Type; 6] =
    [types::I32X4, types::I8X16, types::I16X8, types::I64X2, types::F32X4, types::F64X2];
const CONDITIONS: [IntCC; 10] = [
    IntCC::Equal,
    IntCC::NotEqual,
    IntCC::SignedLessThan,
    IntCC::SignedGreaterThanOrEqual,
    IntCC::SignedGreaterThan,
    IntCC::SignedLessThanOrEqual,
    IntCC::UnsignedLessThan,
    IntCC::UnsignedGreaterThanOrEqual,
    IntCC::UnsignedGreaterThan,
    IntCC::UnsignedLessThanOrEqual,
];
const FLOAT_CONDITIONS: [FloatCC; 8] = [
    FloatCC::Equal,
    FloatCC::NotEqual,
    FloatCC::LessThan,
    FloatCC::LessThanOrEqual,
    FloatCC::GreaterThan,
    FloatCC::GreaterThanOrEqual,
    FloatCC::Ordered,
    FloatCC::Unordered,
];

type Unary = fn(&mut FunctionBuilder<'_>, Value) -> Value;
type Binary = fn(&mut FunctionBuilder<'_>, Value, Value) -> Value;

macro_rules! unary {
    ($($name:ident)*) => { &[$(|b, x| b.ins().$name(x)),*] };
}
macro_rules! binary {
    ($($name:ident)*) => { &[$(|b, x, y| b.ins().$name(x, y)),*] };
}

fn unaries(of: Type) -> &'static [Unary] {
    match of {
        types::I8 => unary!(bnot ineg iabs clz cls ctz popcnt bitrev),
        types::I16 | types::I32 | types::I64 => unary!(bnot ineg iabs clz cls ctz popcnt bitrev bswap),
        types::I128 => unary!(bnot clz ctz popcnt bitrev bswap),
        types::I8X16 | types::I16X8 | types::I32X4 | types::I64X2 => unary!(bnot ineg iabs),
        _ => unary!(fneg fabs sqrt ceil floor trunc nearest),
    }
}

fn binaries(of: Type) -> &'static [Binary] {
    match of {
        types::I8 | types::I16 | types::I32 | types::I64 => {
            binary!(iadd isub imul band bor bxor ishl ushr sshr rotl rotr smin smax umin umax band_not bor_not)
        }
        types::I128 => binary!(iadd isub imul band bor bxor ishl ushr sshr rotl rotr),
        types::I8X16 => {
            binary!(iadd isub band bor bxor smin smax umin umax uadd_sat sadd_sat usub_sat ssub_sat swizzle)
        }
        types::I16X8 => {
            binary!(iadd isub imul band bor bxor smin smax umin umax uadd_sat sadd_sat usub_sat ssub_sat)
        }
        types::I32X4 => binary!(iadd isub imul band bor bxor smin smax umin umax),
        types::I64X2 => binary!(iadd isub imul band bor bxor),
        _ => binary!(fadd fsub fmul fdiv fmin fmax),
    }
}

/// The integer with the bits of a type that is only moved: neither the interpreter nor, without a library, the back ends
/// compute with it.
pub(crate) fn bits_of_moved(of: Type) -> Option<Type> {
    match of {
        types::F16 => Some(types::I16),
        types::F128 => Some(types::I128),
        _ => None,
    }
}

/// The same bits as another type.
fn cast(builder: &mut FunctionBuilder<'_>, to: Type, x: Value) -> Value {
    builder.ins().bitcast(to, MemFlagsData::new(), x)
}

pub(crate) fn unary(choices: &mut Choices<'_>, builder: &mut FunctionBuilder<'_>, of: Type, x: Value) -> Value {
    let Some(bits) = bits_of_moved(of) else { return choices.of(unaries(of))(builder, x) };
    let x = cast(builder, bits, x);
    let x = unary(choices, builder, bits, x);
    cast(builder, of, x)
}

pub(crate) fn binary(
    choices: &mut Choices<'_>,
    builder: &mut FunctionBuilder<'_>,
    of: Type,
    [x, y]: [Value; 2],
) -> Value {
    let Some(bits) = bits_of_moved(of) else { return choices.of(binaries(of))(builder, x, y) };
    let operands = [x, y].map(|value| cast(builder, bits, value));
    let result = binary(choices, builder, bits, operands);
    cast(builder, of, result)
}

/// Division by a divisor that is made positive.
pub(crate) fn divide(
    choices: &mut Choices<'_>,
    builder: &mut FunctionBuilder<'_>,
    of: Type,
    x: Value,
    y: Value,
) -> Value {
    let most = i64::MAX >> (64 - of.bits());
    let mask = builder.ins().iconst(of, most);
    let one = builder.ins().iconst(of, 1);
    let y = builder.ins().band(y, mask);
    let y = builder.ins().bor(y, one);
    let divisions: &[Binary] = binary!(udiv sdiv urem srem);
    choices.of(divisions)(builder, x, y)
}

/// A comparison: its value is an `i8`, or a vector of masks.
pub(crate) fn compare(
    choices: &mut Choices<'_>,
    builder: &mut FunctionBuilder<'_>,
    of: Type,
    [x, y]: [Value; 2],
) -> Value {
    if let Some(bits) = bits_of_moved(of) {
        let operands = [x, y].map(|value| cast(builder, bits, value));
        return compare(choices, builder, bits, operands);
    }
    if of.lane_type().is_float() {
        builder.ins().fcmp(*choices.of(&FLOAT_CONDITIONS), x, y)
    } else {
        builder.ins().icmp(*choices.of(&CONDITIONS), x, y)
    }
}

/// A value of the type `to`, from one of another.
pub(crate) fn convert(
    choices: &mut Choices<'_>,
    builder: &mut FunctionBuilder<'_>,
    from: Type,
    x: Value,
    to: Type,
) -> Option<Value> {
    let signed = choices.below(2) == 1;
    if bits_of_moved(from) == Some(to) || bits_of_moved(to) == Some(from) {
        return Some(cast(builder, to, x));
    }
    let ins = builder.ins();
    Some(match (from, to) {
        _ if from.is_int() && to.is_int() && from.bits() < to.bits() => {
            if signed {
                ins.sextend(to, x)
            } else {
                ins.uextend(to, x)
            }
        }
        _ if from.is_int() && to.is_int() && from.bits() > to.bits() => ins.ireduce(to, x),
        (types::I32 | types::I64, types::F32 | types::F64) => {
            if signed {
                ins.fcvt_from_sint(to, x)
            } else {
                ins.fcvt_from_uint(to, x)
            }
        }
        (types::F32 | types::F64, types::I32 | types::I64) => {
            if signed {
                ins.fcvt_to_sint_sat(to, x)
            } else {
                ins.fcvt_to_uint_sat(to, x)
            }
        }
        (types::F32, types::F64) => ins.fpromote(to, x),
        (types::F64, types::F32) => ins.fdemote(to, x),
        _ if to.is_vector() && to.lane_type() == from => ins.splat(to, x),
        _ if from.is_vector() && from.lane_type() == to => {
            let lane = choices.below(from.lane_count() as usize) as u8;
            builder.ins().extractlane(x, lane)
        }
        (types::I8X16 | types::I16X8 | types::I32X4 | types::I64X2, types::I8) => {
            if signed {
                ins.vany_true(x)
            } else {
                ins.vall_true(x)
            }
        }
        (types::I8X16 | types::I16X8 | types::I32X4 | types::I64X2, types::I32) => ins.vhigh_bits(to, x),
        (types::I8X16, types::I16X8) | (types::I16X8, types::I32X4) | (types::I32X4, types::I64X2) => {
            match (signed, choices.below(2)) {
                (true, 0) => builder.ins().swiden_low(x),
                (true, _) => builder.ins().swiden_high(x),
                (false, 0) => builder.ins().uwiden_low(x),
                (false, _) => builder.ins().uwiden_high(x),
            }
        }
        (types::I16X8, types::I8X16) | (types::I32X4, types::I16X8) => {
            if signed {
                ins.snarrow(x, x)
            } else {
                ins.unarrow(x, x)
            }
        }
        _ => return None,
    })
}
