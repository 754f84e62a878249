//! XENVER: who we are. Guests and tools see Xen 4.20, extra version `-corten`.

use xen_abi::errno::Errno;
use xen_abi::features::*;
use xen_abi::version::*;

use crate::hypercall::{Arguments, Caller};
use crate::machine::Machine;

pub const MAJOR: u32 = 4;
pub const MINOR: u32 = 20;
pub const EXTRA_VERSION: &str = ".0-corten";

/// What kinds of guests there are, as libxl looks for them.
const CAPABILITIES: &str = "hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 ";
const CHANGESET: &str = concat!("corten ", env!("CARGO_PKG_VERSION"));
const COMPILER: &str = "rustc 1.95.0";
/// What an ordinary domain is told instead of what is none of its business.
const DENIED: &str = "<denied>";

/// The features of a PVH domain; `direct_mapped` follows from how its memory is laid out.
fn features<M: Machine>(caller: &Caller<'_, M>) -> u32 {
    let mut set = (1 << XENFEAT_WRITABLE_PAGE_TABLES)
        | (1 << XENFEAT_AUTO_TRANSLATED_PHYSMAP)
        | (1 << XENFEAT_HVM_CALLBACK_VECTOR)
        | (1 << XENFEAT_HVM_SAFE_PVCLOCK)
        | (1 << XENFEAT_MEMORY_OP_VNODE_SUPPORTED)
        | (1 << XENFEAT_RUNSTATE_PHYS_AREA)
        | (1 << XENFEAT_VCPU_TIME_PHYS_AREA)
        | (1 << XENFEAT_DM_MSIX_ALL_WRITES);
    if caller.domain.is_control() {
        set |= 1 << XENFEAT_DOM0;
    }
    set | if caller.domain.one_to_one { 1 << XENFEAT_DIRECT_MAPPED } else { 1 << XENFEAT_NOT_DIRECT_MAPPED }
}

/// Text as a fixed field: cut to fit, always ended by a zero.
fn field<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    for (byte, from) in bytes.iter_mut().take(N.saturating_sub(1)).zip(text.bytes()) {
        *byte = from;
    }
    bytes
}

/// A text of any length behind `struct xen_varbuf`: its length, as far as it fits. ENOBUFS if it does not.
fn variable<M: Machine>(caller: &mut Caller<'_, M>, argument: u64, text: &str) -> Result<u64, Errno> {
    let length = text.len() as u64;
    let handle = caller.handle::<VarBuf>(argument);
    if handle.is_null() {
        return Ok(length);
    }
    let room = caller.read(handle)?.len;
    if room == 0 {
        return Err(Errno::EINVAL);
    }
    if u64::from(room) < length {
        return Err(Errno::ENOBUFS);
    }
    let buffer = handle.byte_add(4).ok_or(Errno::EFAULT)?;
    caller.write_bytes(buffer.address(), text.as_bytes())?;
    Ok(length)
}

pub fn op<M: Machine>(caller: &mut Caller<'_, M>, arguments: Arguments) -> Result<u64, Errno> {
    let [command, argument, ..] = arguments;
    match command as u32 {
        XENVER_VERSION => Ok(u64::from((MAJOR << 16) | MINOR)),
        XENVER_PAGESIZE => Ok(mm::PAGE_SIZE as u64),
        XENVER_GET_FEATURES => {
            let handle = caller.handle::<FeatureInfo>(argument);
            let mut info = caller.read(handle)?;
            if info.submap_idx >= XENFEAT_NR_SUBMAPS {
                return Err(Errno::EINVAL);
            }
            info.submap = features(caller);
            caller.write(handle, &info).map(|()| 0)
        }
        XENVER_EXTRAVERSION => {
            caller.write(caller.handle(argument), &field::<EXTRAVERSION_LEN>(EXTRA_VERSION)).map(|()| 0)
        }
        XENVER_COMPILE_INFO => {
            let info = CompileInfo {
                compiler: field(COMPILER),
                compile_by: field("corten"),
                compile_domain: field("corten"),
                compile_date: field(""),
            };
            caller.write(caller.handle(argument), &info).map(|()| 0)
        }
        XENVER_CAPABILITIES => {
            caller.write(caller.handle(argument), &field::<CAPABILITIES_INFO_LEN>(CAPABILITIES)).map(|()| 0)
        }
        XENVER_CHANGESET => caller.write(caller.handle(argument), &field::<CHANGESET_INFO_LEN>(CHANGESET)).map(|()| 0),
        XENVER_PLATFORM_PARAMETERS => {
            // Where a PV guest would find Xen; a translated domain has no such place.
            let parameters = PlatformParameters { virt_start: 0 };
            caller.write_arg(caller.handle(argument), &parameters).map(|()| 0)
        }
        XENVER_GUEST_HANDLE => {
            let handle = caller.domain.handle;
            caller.write(caller.handle(argument), &handle).map(|()| 0)
        }
        XENVER_COMMANDLINE => {
            // The one that an ordinary domain gets an answer to all the same.
            let line = if caller.domain.is_control() { caller.system.machine.command_line() } else { DENIED };
            caller.write(caller.handle(argument), &field::<COMMANDLINE_LEN>(line)).map(|()| 0)
        }
        XENVER_BUILD_ID => {
            caller.require_control()?;
            Err(Errno::ENODATA)
        }
        XENVER_EXTRAVERSION2 => variable(caller, argument, EXTRA_VERSION),
        XENVER_CAPABILITIES2 => variable(caller, argument, CAPABILITIES),
        XENVER_CHANGESET2 => variable(caller, argument, CHANGESET),
        XENVER_COMMANDLINE2 => {
            caller.require_control()?;
            let system = caller.system;
            variable(caller, argument, system.machine.command_line())
        }
        _ => Err(Errno::ENOSYS),
    }
}
