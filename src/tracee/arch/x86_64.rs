//! The batch loop of x86-64 and the way home.
//!
//! The loop walks a table of [`ENTRY_WORDS`]-word entries, makes each system call and stores its
//! result. Arguments are addresses of words, so that an entry can take the result of an earlier one
//! (the address of its result word) as easily as a constant (the address of its own value word).
//!
//! ```text
//! word   0       number of the system call
//!        1..=6   addresses of its six arguments
//!        7       result
//!        8, 9    the results that let the batch go on: those r with r - word8 <= word9, unsigned
//!        10..=15 constants that words 1..=6 may point to
//! ```
//!
//! After the last entry, or the first whose result is not allowed, the loop sends itself the home
//! signal. Traced, that is a signal-delivery stop with the instruction pointer at [`home_offset`].
//! With the conductor dead the kernel has detached and the signal is ignored by this process, so the
//! loop walks on into the way home: the process's own signal mask, then its own registers, read from
//! the home block that lies one page behind the loop (so that no register has to point to it), then a
//! jump to where it was. FPU state is never touched, so no signal frame is needed. Nothing is pushed:
//! the red zone below the process's stack pointer is its own. Test: `killed_at_random_moments` of
//! `integration/nothing_lost/`.

#![expect(unsafe_code, reason = "the batch loop is machine code")]

use crate::sys::ptrace::UserRegs;

/// Words in an entry of a batch.
pub const ENTRY_WORDS: usize = 16;
/// Bytes of the home block at the start of the data area; entries follow.
pub const HOME_SIZE: usize = 256;
/// Words of it that are used.
const HOME_WORDS: usize = 22;
/// Where the data area starts, counted from the loop.
pub const DATA_OFFSET: u64 = 4096;
/// One past the highest address a process can map (four-level page tables).
pub const TASK_SIZE: u64 = 0x7fff_ffff_f000;

/// The way home, from the tgkill(2) on. `block` is where the home block lies.
macro_rules! way_home {
    ($home:literal, $block:literal) => {
        concat!(
            "mov eax, 234\n", // tgkill
            "mov rdi, [rip + ",
            $block,
            "]\n",
            "mov rsi, [rip + ",
            $block,
            " + 8]\n",
            "mov rdx, [rip + ",
            $block,
            " + 16]\n",
            "syscall\n",
            $home,
            ":\n",
            "mov eax, 14\n", // rt_sigprocmask
            "mov edi, 2\n",  // SIG_SETMASK
            "lea rsi, [rip + ",
            $block,
            " + 24]\n",
            "xor edx, edx\n",
            "mov r10d, 8\n",
            "syscall\n",
            "mov r15, [rip + ",
            $block,
            " + 32]\n",
            "mov r14, [rip + ",
            $block,
            " + 40]\n",
            "mov r13, [rip + ",
            $block,
            " + 48]\n",
            "mov r12, [rip + ",
            $block,
            " + 56]\n",
            "mov rbp, [rip + ",
            $block,
            " + 64]\n",
            "mov rbx, [rip + ",
            $block,
            " + 72]\n",
            "mov r11, [rip + ",
            $block,
            " + 80]\n",
            "mov r10, [rip + ",
            $block,
            " + 88]\n",
            "mov r9, [rip + ",
            $block,
            " + 96]\n",
            "mov r8, [rip + ",
            $block,
            " + 104]\n",
            "mov rax, [rip + ",
            $block,
            " + 112]\n",
            "mov rcx, [rip + ",
            $block,
            " + 120]\n",
            "mov rdx, [rip + ",
            $block,
            " + 128]\n",
            "mov rsi, [rip + ",
            $block,
            " + 136]\n",
            "mov rdi, [rip + ",
            $block,
            " + 144]\n",
            "lea rsp, [rip + ",
            $block,
            " + 152]\n",
            "popfq\n",
            "mov rsp, [rip + ",
            $block,
            " + 160]\n",
            "jmp [rip + ",
            $block,
            " + 168]\n",
        )
    };
}

std::arch::global_asm!(
    ".pushsection .rodata.ocimig_batch,\"a\"",
    ".balign 16",
    ".globl ocimig_batch_start, ocimig_batch_home, ocimig_batch_end",
    ".hidden ocimig_batch_start, ocimig_batch_home, ocimig_batch_end",
    "ocimig_batch_start:",
    "2: test r13, r13",
    "   jz 3f",
    "   mov rax, [r12]",
    "   mov rdi, [r12 + 8]",
    "   mov rdi, [rdi]",
    "   mov rsi, [r12 + 16]",
    "   mov rsi, [rsi]",
    "   mov rdx, [r12 + 24]",
    "   mov rdx, [rdx]",
    "   mov r10, [r12 + 32]",
    "   mov r10, [r10]",
    "   mov r8, [r12 + 40]",
    "   mov r8, [r8]",
    "   mov r9, [r12 + 48]",
    "   mov r9, [r9]",
    "   syscall",
    "   mov [r12 + 56], rax",
    "   sub rax, [r12 + 64]",
    "   cmp rax, [r12 + 72]",
    "   ja 3f",
    "   sub r12, -128",
    "   dec r13",
    "   jmp 2b",
    "3:",
    way_home!("ocimig_batch_home", "ocimig_batch_start + 4096"),
    "ocimig_batch_end:",
    ".popsection",
);

// One call and the way home, with the home block right behind: what fits into a nook.
std::arch::global_asm!(
    ".pushsection .rodata.ocimig_single,\"a\"",
    ".balign 16",
    ".globl ocimig_single_start, ocimig_single_home, ocimig_single_end",
    ".hidden ocimig_single_start, ocimig_single_home, ocimig_single_end",
    "ocimig_single_start:",
    "syscall",
    "mov r12, rax",
    way_home!("ocimig_single_home", "ocimig_single_end"),
    ".balign 8",
    "ocimig_single_end:",
    ".popsection",
);

unsafe extern "C" {
    static ocimig_batch_start: u8;
    static ocimig_batch_home: u8;
    static ocimig_batch_end: u8;
    static ocimig_single_start: u8;
    static ocimig_single_home: u8;
    static ocimig_single_end: u8;
}

/// The machine code of a single call, whose result is in r12 at the end; a home block follows it.
pub fn single_code() -> &'static [u8] {
    let start = &raw const ocimig_single_start;
    let length = (&raw const ocimig_single_end) as usize - start as usize;
    // SAFETY: the symbols delimit read-only bytes of this program.
    unsafe { std::slice::from_raw_parts(start, length) }
}

/// Where a finished single call stops, counted from the start of [`single_code`].
pub fn single_home_offset() -> u64 {
    ((&raw const ocimig_single_home) as usize - (&raw const ocimig_single_start) as usize) as u64
}

/// Bytes of [`single_code`] and its home block.
pub fn single_size() -> usize {
    single_code().len() + HOME_WORDS * 8
}

/// The machine code of the loop and the way home; position-independent, with its data area
/// [`DATA_OFFSET`] bytes behind its start.
pub fn code() -> &'static [u8] {
    let start = &raw const ocimig_batch_start;
    let length = (&raw const ocimig_batch_end) as usize - start as usize;
    // SAFETY: the symbols delimit read-only bytes of this program.
    unsafe { std::slice::from_raw_parts(start, length) }
}

/// Where a finished batch stops, counted from the start of [`code`].
pub fn home_offset() -> u64 {
    ((&raw const ocimig_batch_home) as usize - (&raw const ocimig_batch_start) as usize) as u64
}

const TRAP_FLAG: u64 = 1 << 8;
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// restart_syscall(2)
const RESTART_SYSCALL: u64 = 219;

/// Results of interrupted system calls that never reach user space; `<linux/errno.h>` of the kernel.
pub mod restart {
    /// Restart unless a handler without SA_RESTART runs.
    pub const ERESTARTSYS: i64 = -512;
    /// Restart always.
    pub const ERESTARTNOINTR: i64 = -513;
    /// Restart unless a handler runs.
    pub const ERESTARTNOHAND: i64 = -514;
    /// Restart by restart_syscall(2), with state that only the kernel holds.
    pub const ERESTART_RESTARTBLOCK: i64 = -516;
}

/// The offset of the first `syscall` instruction in machine code.
pub fn find_syscall(code: &[u8]) -> Option<usize> {
    code.windows(2).position(|window| window == SYSCALL)
}

/// The registers with which a stopped thread executes one system call at `instruction`.
pub fn call_registers(
    own: &UserRegs,
    instruction: u64,
    number: u64,
    arguments: [u64; 6],
) -> UserRegs {
    let mut registers = *own;
    registers.rax = number;
    [
        registers.rdi,
        registers.rsi,
        registers.rdx,
        registers.r10,
        registers.r8,
        registers.r9,
    ] = arguments;
    registers.rip = instruction;
    // Or the kernel would take it for an interrupted call and restart it.
    registers.orig_rax = u64::MAX;
    registers.eflags &= !TRAP_FLAG;
    registers
}

/// The registers with which a stopped thread walks `count` entries at `entries`.
pub fn batch_registers(own: &UserRegs, code: u64, entries: u64, count: u64) -> UserRegs {
    let mut registers = *own;
    registers.rip = code;
    registers.r12 = entries;
    registers.r13 = count;
    registers.orig_rax = u64::MAX;
    registers.eflags &= !TRAP_FLAG;
    registers
}

/// The home block: whom to signal, then what the thread was.
pub fn home_block(pid: i32, tid: i32, signal: i32, mask: u64, own: &UserRegs) -> [u8; HOME_SIZE] {
    let mut home = *own;
    home.eflags &= !TRAP_FLAG;
    // A thread inside a call re-enters it as the kernel would.
    if own.orig_rax as i64 >= 0 {
        match own.rax as i64 {
            restart::ERESTARTSYS | restart::ERESTARTNOINTR | restart::ERESTARTNOHAND => {
                home.rax = own.orig_rax;
                home.rip = own.rip.wrapping_sub(2);
            }
            restart::ERESTART_RESTARTBLOCK => {
                home.rax = RESTART_SYSCALL;
                home.rip = own.rip.wrapping_sub(2);
            }
            _ => {}
        }
    }
    let words = [
        pid as u64,
        tid as u64,
        signal as u64,
        mask,
        home.r15,
        home.r14,
        home.r13,
        home.r12,
        home.rbp,
        home.rbx,
        home.r11,
        home.r10,
        home.r9,
        home.r8,
        home.rax,
        home.rcx,
        home.rdx,
        home.rsi,
        home.rdi,
        home.eflags,
        home.rsp,
        home.rip,
    ];
    let mut block = [0; HOME_SIZE];
    for (place, word) in block.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    block
}

/// Where component `number` of the extended state lies in the standard format, and its size; CPUID
/// leaf 0xd.
pub fn xstate_component(number: u32) -> (usize, usize) {
    let leaf = std::arch::x86_64::__cpuid_count(0xd, number);
    (leaf.ebx as usize, leaf.eax as usize)
}

/// The components that the processor and the kernel have (XCR0); bit n for component n.
pub fn xstate_mask() -> u64 {
    let leaf = std::arch::x86_64::__cpuid_count(0xd, 0);
    u64::from(leaf.eax) | u64::from(leaf.edx) << 32
}
