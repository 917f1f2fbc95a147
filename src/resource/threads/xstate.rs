//! The extended processor state by its components (XSAVE): x87 and SSE, AVX, AVX-512, PKRU …
//!
//! The kernel hands out the standard format, whose layout CPUID tells and which can differ between two
//! processors. So components are recorded, and laid out again as the restoring host wants them.

use crate::error::{Error, Exit, Refusals, Result};
use crate::image::bytes::Bytes;
use crate::image::process::Component;
use crate::sys::ptrace;
use crate::tracee::arch;

/// FXSAVE: x87 and SSE, components 0 and 1.
const LEGACY: usize = 512;
/// Where the mask of the components that are not in their initial state lies.
const HEADER: usize = 512;
/// Where the kernel tells which components the area has (struct fxregs_state, sw_reserved).
const KERNEL_MASK: usize = 464;
/// Where the first extended component may begin.
const FIRST_EXTENDED: usize = 576;

fn word(area: &[u8], at: usize) -> u64 {
    area.get(at..at + 8)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

/// The components of a stopped thread that are not in their initial state.
pub(super) fn collect(host_tid: i32) -> Result<Vec<Component>> {
    let area = ptrace::xstate(host_tid)?;
    let present = word(&area, HEADER) & word(&area, KERNEL_MASK);
    let mut components = vec![Component {
        number: 0,
        bytes: Bytes(area[..LEGACY.min(area.len())].to_vec()),
    }];
    for number in (2..63).filter(|number| present >> number & 1 == 1) {
        let (offset, size) = arch::xstate_component(number);
        if let Some(bytes) = area.get(offset..offset + size) {
            components.push(Component {
                number,
                bytes: Bytes(bytes.to_vec()),
            });
        }
    }
    Ok(components)
}

/// Names components that cannot be given to a thread that has never used them: the kernel makes room
/// for AMX tiles at the first instruction (arch/x86/kernel/fpu/xstate.c, validate_user_xstate_header).
pub(super) fn refuse(extended: &[Component], object: &str, refusals: &mut Refusals) {
    if extended.iter().any(|one| AMX.contains(&one.number)) {
        refusals.add(
            "E-AMX",
            object,
            "it has data in the processor's AMX tiles",
            "try again: programs release the tiles after each computation",
        );
    }
}

const AMX: std::ops::RangeInclusive<u32> = 17..=18;

/// Which components this host's processor has; bit n for component n.
pub fn held() -> u64 {
    arch::xstate_mask()
}

/// Names what the restoring processor lacks.
pub fn check_components(extended: &[Component], who: &str, refusals: &mut Refusals) {
    for component in extended.iter().filter(|one| one.number >= 2) {
        if held() >> component.number.min(63) & 1 == 0 {
            refusals.add(
                "E-CPU-STATE",
                who,
                format!(
                    "it uses component {} of the processor's state ({}), which this processor lacks",
                    component.number,
                    name(component.number)
                ),
                "restore it on a processor that has it",
            );
        }
    }
}

fn name(number: u32) -> &'static str {
    match number {
        2 => "AVX",
        5..=7 => "AVX-512",
        9 => "protection keys",
        17 | 18 => "AMX",
        19 => "APX",
        _ => "unknown",
    }
}

/// Sets the state of a stopped thread.
pub(super) fn rebuild(host_tid: i32, components: &[Component]) -> Result<()> {
    let mut area = ptrace::xstate(host_tid)?;
    let host_mask = word(&area, KERNEL_MASK);
    let damaged = |number: u32| {
        Error::coded(
            "E-IMAGE-XSTATE",
            Exit::Image,
            format!("component {number} of a thread's processor state does not fit"),
            "the image is damaged, or of another kind of processor",
        )
    };
    let mut present = 0u64;
    for component in components {
        let number = component.number;
        if number == 0 {
            let legacy = component
                .bytes
                .0
                .get(..KERNEL_MASK)
                .ok_or_else(|| damaged(number))?;
            area[..KERNEL_MASK].copy_from_slice(legacy);
            present |= 3;
            continue;
        }
        if number >= 63 || host_mask >> number & 1 == 0 {
            return Err(damaged(number));
        }
        let (offset, size) = arch::xstate_component(number);
        let place = area
            .get_mut(offset..offset + size)
            .filter(|place| place.len() == component.bytes.0.len() && offset >= FIRST_EXTENDED)
            .ok_or_else(|| damaged(number))?;
        place.copy_from_slice(&component.bytes.0);
        present |= 1 << number;
    }
    area[HEADER..HEADER + 8].copy_from_slice(&present.to_le_bytes());
    ptrace::set_xstate(host_tid, &area)?;
    Ok(())
}
