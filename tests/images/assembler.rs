//! Programs of two assembler files, which use each other by every form of reference.

use std::fmt::Write;

use crate::choices::Choices;

/// Where what is referred to may be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    Anywhere,
    /// In the low two gigabytes, where addresses are short and absolute symbols are, which LLVM's linker does not know.
    Low,
}

/// Bytes of a data object.
const DATA: usize = 32;

/// A random program: two files that the assembler reads.
pub(crate) fn program(bytes: &[u8], reach: Reach) -> [(&'static str, String); 2] {
    let mut choices = Choices::new(bytes);
    let choices = &mut choices;
    let mut files = [Assembly::default(), Assembly::default()];
    let data: Vec<_> = (0..2 + choices.below(5)).map(|_| choices.below(2)).collect();
    let functions: Vec<_> = (0..2 + choices.below(7)).map(|_| choices.below(2)).collect();
    for (index, file) in data.iter().enumerate() {
        define_data(&mut files[*file], choices, index);
    }
    for (index, file) in functions.iter().enumerate() {
        let mut function = Function { choices, file: &mut files[*file], own: *file, data: &data, reach };
        function.define(index, functions.len());
    }
    if reach == Reach::Low {
        let value = 1 + choices.below(100);
        put(&mut files[1].code, format_args!(".globl small\nsmall = {value}\n"));
    }
    for (number, file) in files.iter_mut().enumerate() {
        // Both have it: the first one's is used.
        put(
            &mut file.code,
            format_args!(
                ".comm common,{DATA},16\n.weak missing\n.section .data.weak,\"aw\"\n.weak shared\n.type shared,@object\n\
                 .size shared,8\nshared: .quad {number}7\n.section .note.GNU-stack,\"\",@progbits\n"
            ),
        );
    }
    files[0].code += MAIN;
    let [first, second] = files;
    [("first.s", first.text()), ("second.s", second.text())]
}

const MAIN: &str = r#"
    .text
    .globl main
main:
    pushq %rbp
    movl $1, %edi
    call f0
    movq %rax, %rsi
    leaq format(%rip), %rdi
    xorl %eax, %eax
    call printf@PLT
    xorl %eax, %eax
    popq %rbp
    ret
    .section .rodata.str1.1,"aMS",@progbits,1
format: .asciz "%lx\n"
"#;

#[derive(Default)]
struct Assembly {
    code: String,
    /// What functions refer through.
    tables: String,
    labels: usize,
}

impl Assembly {
    /// A word of a table, which a function refers to by the label that is given.
    fn word(&mut self, directive: &str, value: &str) -> String {
        self.labels += 1;
        let label = format!("word{}", self.labels);
        put(&mut self.tables, format_args!(".balign 8\n{label}: {directive} {value}\n"));
        label
    }

    fn text(self) -> String {
        format!("{}\n.section .data.rel,\"aw\"\n{}", self.code, self.tables)
    }
}

fn put(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).unwrap();
}

fn define_data(file: &mut Assembly, choices: &mut Choices<'_>, index: usize) {
    let section = choices.of(&[".data,\"aw\"", ".rodata,\"a\"", ".data.own,\"aw\"", ".rodata.own,\"a\""]);
    let align = choices.of(&[8, 16, 64]);
    put(&mut file.code, format_args!(".section {section}\n.balign {align}\n.globl d{index}\n.type d{index},@object\n"));
    put(&mut file.code, format_args!(".size d{index},{DATA}\nd{index}:\n"));
    for _ in 0..DATA {
        put(&mut file.code, format_args!(".byte {}\n", choices.below(256)));
    }
}

/// A function under construction. It takes a number in `rdi` and gives one in `rax`.
struct Function<'a, 'c> {
    choices: &'a mut Choices<'c>,
    file: &'a mut Assembly,
    own: usize,
    /// The file of each data object.
    data: &'a [usize],
    reach: Reach,
}

impl Function<'_, '_> {
    fn define(&mut self, index: usize, count: usize) {
        let section = self.choices.of(&[".text,\"ax\"", ".text.cold,\"ax\"", ".text.own,\"ax\""]);
        put(
            &mut self.file.code,
            format_args!(".section {section}\n.globl f{index}\n.type f{index},@function\nf{index}:\n"),
        );
        self.line("pushq %rbx");
        self.line("movq %rdi, %rax");
        for _ in 0..1 + self.choices.below(8) {
            self.line("imulq $1099511, %rax, %rax");
            self.mix();
        }
        // Only what comes later is called, so that it ends.
        let later = index + 1..count;
        for _ in 0..self.choices.below(3).min(later.len()) {
            let callee = later.start + self.choices.below(later.len());
            self.line("movq %rax, %rdi");
            self.call(&format!("f{callee}"));
        }
        self.line("popq %rbx");
        if !later.is_empty() && self.choices.below(3) == 0 {
            let callee = format!("f{}", later.start + self.choices.below(later.len()));
            self.line("movq %rax, %rdi");
            let jump = match self.choices.below(4) {
                0 => format!("jmp {callee}"),
                1 => format!("jmp {callee}@PLT"),
                2 => format!("testq %rdi, %rdi\n    je {callee}\n    jmp {callee}"),
                _ => format!("jmp *{callee}@GOTPCREL(%rip)"),
            };
            self.line(&jump);
        }
        self.line("ret");
        put(&mut self.file.code, format_args!(".size f{index}, .-f{index}\n"));
    }

    fn line(&mut self, text: &str) {
        put(&mut self.file.code, format_args!("    {text}\n"));
    }

    fn call(&mut self, callee: &str) {
        let text = match self.choices.below(8) {
            0 => format!("call {callee}"),
            1 => format!("call {callee}@PLT"),
            2 => format!("call *{callee}@GOTPCREL(%rip)"),
            3 => format!("leaq {callee}(%rip), %rcx\n    call *%rcx"),
            4 => format!("movq {callee}@GOTPCREL(%rip), %rcx\n    call *%rcx"),
            5 => format!("movabsq ${callee}, %rcx\n    call *%rcx"),
            6 => {
                let word = self.file.word(".quad", callee);
                format!("call *{word}(%rip)")
            }
            _ => {
                let word = self.file.word(".long", &format!("{callee} - ."));
                format!("leaq {word}(%rip), %rcx\n    movslq {word}(%rip), %rdx\n    addq %rdx, %rcx\n    call *%rcx")
            }
        };
        self.line(&text);
    }

    /// Mixes a word of a data object into the result.
    fn mix(&mut self) {
        let index = self.choices.below(self.data.len());
        let is_own = self.data[index] == self.own;
        let other = self.choices.below(12);
        let name = match other {
            0 => "common".to_owned(),
            1 => "shared".to_owned(),
            _ => format!("d{index}"),
        };
        let offset = if other == 1 { 0 } else { self.choices.below(DATA - 7) };
        let forms = if self.reach == Reach::Low { 20 } else { 12 };
        let text = match self.choices.below(forms) {
            0 | 1 => format!("xorq {name}+{offset}(%rip), %rax"),
            2 => format!("movq {name}@GOTPCREL(%rip), %rcx\n    xorq {offset}(%rcx), %rax"),
            3 => format!("xorl %ecx, %ecx\n    addq {name}@GOTPCREL(%rip), %rcx\n    xorq {offset}(%rcx), %rax"),
            4 => format!("pushq {name}@GOTPCREL(%rip)\n    popq %rcx\n    xorq {offset}(%rcx), %rax"),
            5 => format!("movabsq ${name}+{offset}, %rcx\n    xorq (%rcx), %rax"),
            6 => {
                let word = self.file.word(".quad", &format!("{name}+{offset}"));
                format!("movq {word}(%rip), %rcx\n    xorq (%rcx), %rax")
            }
            7 => {
                let word = self.file.word(".quad", &format!("{name}+{offset} - ."));
                format!("leaq {word}(%rip), %rcx\n    addq {word}(%rip), %rcx\n    xorq (%rcx), %rax")
            }
            8 => {
                let word = self.file.word(".long", &format!("{name}+{offset} - ."));
                format!("leaq {word}(%rip), %rcx\n    movslq {word}(%rip), %rdx\n    xorq (%rcx,%rdx), %rax")
            }
            // Of another object's symbol only its linker knows the size.
            9 if is_own => format!("movl $d{index}@SIZE, %ecx\n    xorq %rcx, %rax"),
            10 if is_own => format!("movabsq $d{index}@SIZE+{offset}, %rcx\n    xorq %rcx, %rax"),
            9 | 10 => {
                "xorl %ecx, %ecx\n    cmpq missing@GOTPCREL(%rip), %rcx\n    sete %cl\n    xorq %rcx, %rax".to_owned()
            }
            14 => "movw $small, %cx\n    movzwl %cx, %ecx\n    xorq %rcx, %rax".to_owned(),
            12 => "movb $small, %cl\n    movzbl %cl, %ecx\n    xorq %rcx, %rax".to_owned(),
            13 => "movl $small, %ecx\n    addq $small, %rax\n    xorq %rcx, %rax".to_owned(),
            // LLVM's linker knows no table without an entry.
            11 => format!(
                "pushq common@GOTPCREL(%rip)\n    popq %rcx\n    leaq _GLOBAL_OFFSET_TABLE_(%rip), %rcx\n    movabsq ${name}@GOTOFF+{offset}, %rdx\n    xorq (%rcx,%rdx), %rax"
            ),
            15 => format!("movl ${name}+{offset}, %ecx"),
            16 => format!("movq ${name}+{offset}, %rcx"),
            17 => format!("xorq {name}+{offset}, %rax"),
            18 => format!("movl {name}@GOTPCREL(%rip), %ecx"),
            _ => {
                let word = self.file.word(".long", &format!("{name}+{offset}"));
                format!("movl {word}(%rip), %ecx")
            }
        };
        self.line(&text);
    }
}
