//! What functions refer to, known before they are compiled.

use cranelift_codegen::ir::{self, GlobalValueData, InstructionData};

use super::packed::PackedFunction;

/// A function or data object of the module, by namespace and index.
type Reference = (u32, u32);

/// The references of a module's functions, noted when those are defined: they are in the processor's cache then.
#[derive(Default)]
pub(crate) struct References {
    all: Vec<Reference>,
    /// By function: where its references begin and end.
    functions: Vec<Option<(u32, u32)>>,
}

impl References {
    /// Notes what a function refers to.
    pub(crate) fn note(&mut self, function: u32, func: &PackedFunction) {
        let Ok(start) = u32::try_from(self.all.len()) else { return };
        of(func, &mut |namespace, index| self.all.push((namespace, index)));
        let Ok(end) = u32::try_from(self.all.len()) else { return };
        if self.functions.len() <= function as usize {
            self.functions.resize(function as usize + 1, None);
        }
        self.functions[function as usize] = Some((start, end));
    }

    /// What was noted of a function.
    pub(crate) fn noted(&self, function: u32) -> Option<impl Iterator<Item = Reference>> {
        let (start, end) = (*self.functions.get(function as usize)?)?;
        Some(self.all[start as usize..end as usize].iter().copied())
    }
}

/// Visits every function that `func` calls or takes the address of, and the data it declares: by namespace and index.
pub(crate) fn of(func: &PackedFunction, see: &mut impl FnMut(u32, u32)) {
    let mut see_name = |name: &ir::ExternalName| {
        if let ir::ExternalName::User(name) = name
            && let Some(name) = func.user_name(*name)
        {
            see(name.namespace, name.index);
        }
    };
    for inst in func.insts() {
        if let InstructionData::Call { func_ref, .. }
        | InstructionData::TryCall { func_ref, .. }
        | InstructionData::FuncAddr { func_ref, .. } = func.dfg.insts[inst]
        {
            // What is not declared is found by whoever compiles it.
            if let Some(data) = func.dfg.ext_funcs.get(func_ref) {
                see_name(&data.name);
            }
        }
    }
    for value in func.global_values() {
        if let GlobalValueData::Symbol { name, .. } = value {
            see_name(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_what_a_function_uses_and_no_more() {
        let text = "function u0:2() -> i64 system_v {
            gv0 = symbol u1:3
            sig0 = () -> i64 system_v
            fn0 = u0:0 sig0
            fn1 = u0:1 sig0
            fn2 = u0:7 sig0
        block0:
            v0 = call fn0()
            v1 = func_addr.i64 fn1
            return v0
        }";
        let func = cranelift_reader::parse_functions(text).expect("the text is CLIF").remove(0);
        let mut references = References::default();
        references.note(2, &PackedFunction::of(&func, &mut None));
        let noted = |function| references.noted(function).map(Iterator::collect::<Vec<_>>);
        assert_eq!(noted(2), Some(vec![(0, 0), (0, 1), (1, 3)]));
        assert_eq!(noted(0), None);
        assert_eq!(noted(3), None);
    }
}
