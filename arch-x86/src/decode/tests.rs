//! The same instructions, on the same state, by this CPU and by the plans.

use core::arch::asm;

use super::alu::{AF, CF, DF, OF, PF, SF, ZF};
use super::*;
use proptest::prelude::*;

const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;

/// A vCPU whose RDI (and for LODS and MOVS its RSI) points to emulated memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    gprs: [u64; 16],
    rflags: u64,
    memory: u64,
}

impl Registers for State {
    fn gpr(&self, number: u8) -> u64 {
        self.gprs[usize::from(number)]
    }

    fn set_gpr(&mut self, number: u8, value: u64) {
        self.gprs[usize::from(number)] = value;
    }

    fn rflags(&self) -> u64 {
        self.rflags
    }

    fn set_rflags(&mut self, value: u64) {
        self.rflags = value;
    }

    fn segment_base(&self, number: u8) -> u64 {
        u64::from(number) << 32
    }
}

impl State {
    /// Registers and memory from a seed, often with small and equal values in them.
    fn new(seed: u64) -> State {
        let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut random = || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            match x >> 60 {
                0 => 0,
                1 => u64::MAX,
                2 => x & 0xff,
                3 => 0x8000_0000_8000_8080,
                4 => 0x7fff_ffff_7fff_7f7f,
                _ => x,
            }
        };
        let mut gprs = [0; 16];
        gprs.iter_mut().for_each(|gpr| *gpr = random());
        let memory = if random() & 3 == 0 { gprs[0] } else { random() };
        State { gprs, rflags: random() & ARITHMETIC | 0x202, memory }
    }

    fn load(&self, size: Size) -> u64 {
        self.memory & size.mask()
    }

    fn store(&mut self, size: Size, value: u64) {
        assert_eq!(value & !size.mask(), 0, "a value wider than its access");
        self.memory = self.memory & !size.mask() | value;
    }

    /// What the run loop does, with a device that answers at once.
    fn emulate(&mut self, bytes: &[u8], mode: Mode) -> (Plan, Next) {
        let plan = plan(bytes, mode, self).unwrap();
        let value = match plan.access {
            Access::Read(size) | Access::ReadModifyWrite(size) => self.load(size),
            Access::Write { size, value } => {
                self.store(size, value);
                0
            }
            Access::Copy { .. } | Access::Nothing => 0,
        };
        let next = plan.finish(value, self);
        if let Next::Write { size, value } = next {
            self.store(size, value);
        }
        (plan, next)
    }
}

/// Declares a function that executes the given bytes on this CPU: RDI points to the memory, RBX, RSP and RBP keep out
/// of it.
macro_rules! native {
    ($name:ident: $($byte:literal)+) => {
        fn $name(state: &mut State) {
            let [mut rax, mut rcx, mut rdx, rbx, ..] = state.gprs;
            let mut rbx = rbx;
            let [mut r8, mut r9] = [state.gprs[8], state.gprs[9]];
            let mut rsi = state.gprs[6];
            let mut flags = state.rflags;
            let memory = &raw mut state.memory;
            // SAFETY: the tests' instructions touch the eight bytes at RDI, the registers named here and the flags, no
            // others. The two pushes are balanced, and the direction flag is cleared.
            unsafe {
                asm!(
                    "xchg rbx, r10", "push r11", "popfq",
                    concat!(".byte " $(, stringify!($byte), ",")+ , "0x90"),
                    "pushfq", "pop r11", "xchg rbx, r10", "cld",
                    inout("rax") rax, inout("rcx") rcx, inout("rdx") rdx, inout("r10") rbx,
                    inout("r8") r8, inout("r9") r9, inout("rsi") rsi, inout("rdi") memory => _, inout("r11") flags,
                );
            }
            state.gprs[..4].copy_from_slice(&[rax, rcx, rdx, rbx]);
            state.gprs[6] = rsi;
            state.gprs[8..10].copy_from_slice(&[r8, r9]);
            state.rflags = flags;
        }
    };
}

/// One test: each line is an instruction's bytes, and the flags that it leaves undefined.
macro_rules! as_the_cpu_does {
    ($test:ident, undefined $undefined:expr; $($text:literal: $($byte:literal)+;)+) => {
        #[test]
        fn $test() {
            $({
                native!(run: $($byte)+);
                let bytes = [$($byte),+];
                for seed in 0..500 {
                    let start = State::new(seed);
                    let (mut real, mut emulated) = (start, start);
                    run(&mut real);
                    let (plan, next) = emulated.emulate(&bytes, Mode::Bits64);
                    assert_eq!(usize::from(plan.length), bytes.len(), $text);
                    assert!(next != Next::Repeat);
                    let defined = |state: State| State { rflags: state.rflags & (ARITHMETIC & !$undefined), ..state };
                    assert_eq!(defined(emulated), defined(real), "{} on {start:x?}", $text);
                }
            })+
        }
    };
}

as_the_cpu_does! { loads_fill_registers_of_every_width, undefined 0;
    "mov eax, [rdi]": 0x8b 0x07;
    "mov rdx, [rdi]": 0x48 0x8b 0x17;
    "mov cx, [rdi]": 0x66 0x8b 0x0f;
    "mov al, [rdi]": 0x8a 0x07;
    "mov ah, [rdi]": 0x8a 0x27;
    "mov bh, [rdi]": 0x8a 0x3f;
    "mov r9d, [rdi]": 0x44 0x8b 0x0f;
    "mov sil, [rdi]": 0x40 0x8a 0x37;
    "movzx eax, byte [rdi]": 0x0f 0xb6 0x07;
    "movzx cx, byte [rdi]": 0x66 0x0f 0xb6 0x0f;
    "movzx rdx, word [rdi]": 0x48 0x0f 0xb7 0x17;
    "movsx eax, byte [rdi]": 0x0f 0xbe 0x07;
    "movsx cx, byte [rdi]": 0x66 0x0f 0xbe 0x0f;
    "movsx rdx, word [rdi]": 0x48 0x0f 0xbf 0x17;
    "movsxd r8, dword [rdi]": 0x4c 0x63 0x07;
}

as_the_cpu_does! { stores_take_registers_and_immediates_of_every_width, undefined 0;
    "mov [rdi], eax": 0x89 0x07;
    "mov [rdi], rdx": 0x48 0x89 0x17;
    "mov [rdi], cx": 0x66 0x89 0x0f;
    "mov [rdi], dl": 0x88 0x17;
    "mov [rdi], ch": 0x88 0x2f;
    "mov [rdi], r9b": 0x44 0x88 0x0f;
    "mov [rdi], sil": 0x40 0x88 0x37;
    "mov dword [rdi], imm": 0xc7 0x07 0x78 0x56 0x34 0x92;
    "mov qword [rdi], simm32": 0x48 0xc7 0x07 0x78 0x56 0x34 0x92;
    "mov word [rdi], imm": 0x66 0xc7 0x07 0x78 0x96;
    "mov byte [rdi], imm": 0xc6 0x07 0x9a;
    "movnti [rdi], ecx": 0x0f 0xc3 0x0f;
}

as_the_cpu_does! { arithmetic_on_memory_sets_every_flag, undefined 0;
    "add [rdi], eax": 0x01 0x07;
    "add [rdi], ch": 0x00 0x2f;
    "add qword [rdi], simm8": 0x48 0x83 0x07 0x80;
    "lock add dword [rdi], imm": 0xf0 0x81 0x07 0x78 0x56 0x34 0x92;
    "adc [rdi], rcx": 0x48 0x11 0x0f;
    "adc byte [rdi], 0xff": 0x80 0x17 0xff;
    "sub [rdi], dx": 0x66 0x29 0x17;
    "sub dword [rdi], 1": 0x83 0x2f 0x01;
    "sbb [rdi], eax": 0x19 0x07;
    "sbb qword [rdi], -1": 0x48 0x83 0x1f 0xff;
    "inc dword [rdi]": 0xff 0x07;
    "inc byte [rdi]": 0xfe 0x07;
    "dec qword [rdi]": 0x48 0xff 0x0f;
    "dec word [rdi]": 0x66 0xff 0x0f;
    "neg dword [rdi]": 0xf7 0x1f;
    "neg byte [rdi]": 0xf6 0x1f;
    "not qword [rdi]": 0x48 0xf7 0x17;
}

as_the_cpu_does! { arithmetic_on_registers_takes_memory, undefined 0;
    "add eax, [rdi]": 0x03 0x07;
    "add ah, [rdi]": 0x02 0x27;
    "adc rdx, [rdi]": 0x48 0x13 0x17;
    "sub cx, [rdi]": 0x66 0x2b 0x0f;
    "sbb r8d, [rdi]": 0x44 0x1b 0x07;
    "cmp eax, [rdi]": 0x3b 0x07;
    "cmp [rdi], rax": 0x48 0x39 0x07;
    "cmp [rdi], bh": 0x38 0x3f;
    "cmp dword [rdi], simm8": 0x83 0x3f 0x80;
    "cmp byte [rdi], imm": 0x80 0x3f 0x7f;
}

as_the_cpu_does! { logic_sets_the_flags_it_defines, undefined AF;
    "and [rdi], eax": 0x21 0x07;
    "and dword [rdi], simm8": 0x83 0x27 0xf0;
    "or [rdi], rdx": 0x48 0x09 0x17;
    "or byte [rdi], imm": 0x80 0x0f 0x81;
    "xor [rdi], cx": 0x66 0x31 0x0f;
    "and eax, [rdi]": 0x23 0x07;
    "or ch, [rdi]": 0x0a 0x2f;
    "xor r9, [rdi]": 0x4c 0x33 0x0f;
    "test [rdi], eax": 0x85 0x07;
    "test dword [rdi], imm": 0xf7 0x07 0x78 0x56 0x34 0x92;
    "test byte [rdi], imm": 0xf6 0x07 0x80;
}

as_the_cpu_does! { exchanges_give_both_sides_the_other_value, undefined 0;
    "xchg [rdi], eax": 0x87 0x07;
    "xchg [rdi], bh": 0x86 0x3f;
    "xchg [rdi], r9": 0x4c 0x87 0x0f;
    "lock xadd [rdi], ecx": 0xf0 0x0f 0xc1 0x0f;
    "xadd [rdi], dl": 0x0f 0xc0 0x17;
    "lock cmpxchg [rdi], ecx": 0xf0 0x0f 0xb1 0x0f;
    "cmpxchg [rdi], rdx": 0x48 0x0f 0xb1 0x17;
    "cmpxchg [rdi], ch": 0x0f 0xb0 0x2f;
}

as_the_cpu_does! { bit_tests_set_the_carry, undefined (OF | SF | AF | PF);
    "bt dword [rdi], 5": 0x0f 0xba 0x27 0x05;
    "bts dword [rdi], 31": 0x0f 0xba 0x2f 0x1f;
    "btr word [rdi], 15": 0x66 0x0f 0xba 0x37 0x0f;
    "btc qword [rdi], 63": 0x48 0x0f 0xba 0x3f 0x3f;
    "lock bts qword [rdi], 40": 0xf0 0x48 0x0f 0xba 0x2f 0x28;
}

as_the_cpu_does! { conditions_are_those_of_the_flags, undefined 0;
    "seto [rdi]": 0x0f 0x90 0x07;
    "setno [rdi]": 0x0f 0x91 0x07;
    "setb [rdi]": 0x0f 0x92 0x07;
    "setae [rdi]": 0x0f 0x93 0x07;
    "sete [rdi]": 0x0f 0x94 0x07;
    "setne [rdi]": 0x0f 0x95 0x07;
    "setbe [rdi]": 0x0f 0x96 0x07;
    "seta [rdi]": 0x0f 0x97 0x07;
    "sets [rdi]": 0x0f 0x98 0x07;
    "setns [rdi]": 0x0f 0x99 0x07;
    "setp [rdi]": 0x0f 0x9a 0x07;
    "setnp [rdi]": 0x0f 0x9b 0x07;
    "setl [rdi]": 0x0f 0x9c 0x07;
    "setge [rdi]": 0x0f 0x9d 0x07;
    "setle [rdi]": 0x0f 0x9e 0x07;
    "setg [rdi]": 0x0f 0x9f 0x07;
    "cmovb eax, [rdi]": 0x0f 0x42 0x07;
    "cmovge rdx, [rdi]": 0x48 0x0f 0x4d 0x17;
    "cmovs cx, [rdi]": 0x66 0x0f 0x48 0x0f;
}

fn with(changes: &[(u8, u64)]) -> State {
    let mut state = State { gprs: [0; 16], rflags: 0x202, memory: 0 };
    for &(number, value) in changes {
        state.set_gpr(number, value);
    }
    state
}

#[test]
fn a_repeated_store_goes_turn_by_turn_until_its_count_is_spent() {
    let mut state = with(&[(0, 0x1122_3344), (1, 3), (7, 0x1000)]);
    let bytes = [0xf3, 0xab];
    for (count, expected) in [(2, Next::Repeat), (1, Next::Repeat), (0, Next::Retire)] {
        let (plan, next) = state.emulate(&bytes, Mode::Bits64);
        assert_eq!(plan.access, Access::Write { size: Size::Dword, value: 0x1122_3344 });
        assert_eq!((next, state.gpr(1)), (expected, count));
    }
    assert_eq!(state.gpr(7), 0x100c);
    let (plan, next) = state.emulate(&bytes, Mode::Bits64);
    assert_eq!((plan.access, next, state.gpr(7)), (Access::Nothing, Next::Retire, 0x100c));
}

#[test]
fn strings_go_backwards_with_the_direction_flag() {
    let mut state = with(&[(6, 0x2000), (7, 0x1000)]);
    state.rflags |= DF;
    state.memory = 0xaabb;
    let (plan, next) = state.emulate(&[0x66, 0xad], Mode::Bits64);
    assert_eq!((plan.access, next), (Access::Read(Size::Word), Next::Retire));
    assert_eq!((state.gpr(0), state.gpr(6), state.gpr(7)), (0xaabb, 0x1ffe, 0x1000));
}

#[test]
fn movs_names_both_addresses_with_their_segments() {
    let mut state = with(&[(6, 0xffff_ffff_0000_2000), (7, 0x1000), (1, 2)]);
    let copy = |from, to| Access::Copy { size: Size::Dword, from, to };
    // In 32-bit mode, with an FS prefix: FS is segment 4, ES 0.
    let (plan, next) = state.emulate(&[0x64, 0xf3, 0xa5], Mode::Bits32);
    assert_eq!((plan.access, next), (copy(0x4_0000_2000, 0x1000), Next::Repeat));
    assert_eq!((state.gpr(6), state.gpr(7), state.gpr(1)), (0x2004, 0x1004, 1));
    // DS is segment 3.
    let (plan, next) = state.emulate(&[0xf3, 0xa5], Mode::Bits32);
    assert_eq!((plan.access, next), (copy(0x3_0000_2004, 0x1004), Next::Retire));
}

#[test]
fn sixteen_bit_pointers_wrap_within_their_registers() {
    let mut state = with(&[(0, 0x5a), (7, 0xabcd_ffff), (1, 0x7777_0001)]);
    let (plan, next) = state.emulate(&[0xf3, 0xaa], Mode::Bits16);
    assert_eq!((plan.access, next), (Access::Write { size: Size::Byte, value: 0x5a }, Next::Retire));
    assert_eq!((state.gpr(7), state.gpr(1)), (0xabcd_0000, 0x7777_0000));
}

#[test]
fn the_forms_of_linux_decode_in_each_mode() {
    let state = with(&[(0, 0x1234)]);
    let access = |bytes: &[u8], mode| plan(bytes, mode, &state).map(|plan| (plan.access, plan.length));
    let dword = Access::Write { size: Size::Dword, value: 0x1234 };
    assert_eq!(access(&[0x89, 0x04, 0x25, 0xb0, 0xc0, 0x5f, 0xff], Mode::Bits64), Ok((dword, 7)), "mov [abs32], eax");
    assert_eq!(access(&[0x89, 0x05, 0, 0, 0, 0], Mode::Bits64), Ok((dword, 6)), "mov [rip], eax");
    assert_eq!(access(&[0xa3, 0xb0, 0xc0, 0xe0, 0xfe], Mode::Bits32), Ok((dword, 5)), "mov [moffs], eax");
    assert_eq!(access(&[0xa1, 0xb0, 0xc0, 0xe0, 0xfe], Mode::Bits32), Ok((Access::Read(Size::Dword), 5)));
    let word = Access::Write { size: Size::Word, value: 0x1234 };
    assert_eq!(access(&[0x89, 0x07], Mode::Bits16), Ok((word, 2)), "mov [bx], ax");
    assert_eq!(access(&[0x67, 0x66, 0x89, 0x07], Mode::Bits16), Ok((dword, 4)), "mov [edi], eax");
    let padded = [0x8b, 0x47, 0x10, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90];
    assert_eq!(access(&padded, Mode::Bits64), Ok((Access::Read(Size::Dword), 3)));
}

#[test]
fn what_is_cut_short_invalid_or_unsupported_is_told_apart() {
    let state = with(&[]);
    let error = |bytes: &[u8]| plan(bytes, Mode::Bits64, &state).expect_err(&format!("{bytes:02x?}"));
    assert_eq!(error(&[]), Undecodable::CutShort);
    assert_eq!(error(&[0xc7, 0x07, 0x01]), Undecodable::CutShort);
    assert_eq!(error(&[0x66; 15]), Undecodable::Invalid, "longer than an instruction can be");
    assert_eq!(error(&[0x06, 0, 0, 0]), Undecodable::Invalid, "push es");
    assert_eq!(error(&[0xf0, 0x89, 0x07]), Undecodable::Invalid, "lock mov");
    assert_eq!(error(&[0x89, 0xc3]), Undecodable::Unsupported, "mov ebx, eax");
    assert_eq!(error(&[0xff, 0x37]), Undecodable::Unsupported, "push qword [rdi]");
    assert_eq!(error(&[0x0f, 0x28, 0x07]), Undecodable::Unsupported, "movaps xmm0, [rdi]");
    assert_eq!(error(&[0xf2, 0x0f, 0x10, 0x07]), Undecodable::Unsupported, "the SSE movsd");
    assert_eq!(error(&[0x8e, 0x1f]), Undecodable::Unsupported, "mov ds, [rdi]");
    assert_eq!(error(&[0x8d, 0x07]), Undecodable::Unsupported, "lea");
}

#[test]
fn a_plan_says_whether_it_writes() {
    let state = with(&[(1, 1)]);
    let writes = |bytes: &[u8]| plan(bytes, Mode::Bits64, &state).unwrap().writes();
    assert!(writes(&[0x89, 0x07]) && writes(&[0xff, 0x07]) && writes(&[0xa4]) && writes(&[0x87, 0x07]));
    assert!(!writes(&[0x8b, 0x07]) && !writes(&[0x3b, 0x07]) && !writes(&[0x0f, 0xba, 0x27, 0x05]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn no_bytes_panic_and_every_value_fits_its_access(
        bytes in prop::collection::vec(any::<u8>(), 0..=15),
        mode in prop::sample::select(vec![Mode::Bits16, Mode::Bits32, Mode::Bits64]),
        seed in any::<u64>(),
    ) {
        let mut state = State::new(seed);
        let _ = instruction_length(&bytes, mode);
        let _ = control_move(&bytes, mode);
        if let Ok(plan) = plan(&bytes, mode, &state) {
            prop_assert!(usize::from(plan.length) <= bytes.len());
            let _ = state.emulate(&bytes, mode);
        }
    }
}
