//! What a processor holds for a thread: vector and floating-point registers, control words, bases.

use super::sys::{call, registers};
use super::{Check, SetUp, ensure, eventually};
use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// The kinds of this module.
pub const KINDS: &[(&str, SetUp)] = &[
    ("processor_vectors", vectors),
    ("processor_controls", controls),
    ("processor_bases", bases),
    ("processor_busy", busy),
];

static ROUNDS: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);

/// The check that threads made `rounds` more rounds, and all of them right.
fn all_right(rounds: u64) -> Check {
    Box::new(move |_| {
        let before = ROUNDS.load(Ordering::SeqCst);
        eventually("rounds", || {
            ROUNDS.load(Ordering::SeqCst) >= before + rounds
        })?;
        let wrong = WRONG.load(Ordering::SeqCst);
        ensure!(wrong == 0, "{wrong} rounds ended with other values");
        Ok(())
    })
}

fn start(threads: u64, round: impl Fn(u64) -> bool + Send + Copy + 'static) {
    for number in 1..=threads {
        thread::spawn(move || {
            for step in 0.. {
                let good = round(number << 32 | step);
                WRONG.fetch_add(u64::from(!good), Ordering::SeqCst);
                ROUNDS.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
}

/// All vector registers full, across a call that sleeps.
fn vectors() -> Result<Check, Box<dyn Error>> {
    start(4, |seed| registers::keep_vectors(seed, 30));
    Ok(all_right(8))
}

/// Rounding modes and precision.
fn controls() -> Result<Check, Box<dyn Error>> {
    start(4, |seed| registers::keep_controls(seed, 30));
    Ok(all_right(8))
}

/// The gs base, which no library uses.
fn bases() -> Result<Check, Box<dyn Error>> {
    const ARCH_SET_GS: i32 = 0x1001;
    const ARCH_GET_GS: i32 = 0x1004;
    for number in 0..3_u64 {
        thread::spawn(move || {
            let base = 0x1234_5000 + (number << 32);
            let mut good = call!(libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base)).is_ok();
            loop {
                thread::sleep(std::time::Duration::from_millis(20));
                let mut now = 0_u64;
                good &= call!(libc::syscall(libc::SYS_arch_prctl, ARCH_GET_GS, &mut now)).is_ok();
                WRONG.fetch_add(u64::from(!good || now != base), Ordering::SeqCst);
                ROUNDS.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    Ok(all_right(6))
}

/// A thread that never makes a call, and computes with all it has.
fn busy() -> Result<Check, Box<dyn Error>> {
    start(1, |seed| {
        let compute = || {
            let (mut integer, mut float) = (seed, 1.5_f64);
            for _ in 0..2_000_000 {
                integer = integer
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                float = float * 0.999_999 + (integer >> 40) as f64;
            }
            (integer, float.to_bits())
        };
        let first = compute();
        thread::sleep(std::time::Duration::from_millis(20));
        first == std::hint::black_box(&compute)()
    });
    Ok(all_right(3))
}
