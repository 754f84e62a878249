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
            let handle = caller.domain.control.handle();
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

#[cfg(test)]
mod tests {
    use xen_abi::numbers::XEN_VERSION;

    use super::*;
    use crate::fake::{self, Running, Wanted, page};
    use crate::machine::Width;

    fn pair() -> (Running, Running) {
        let system = fake::system(256);
        let domains = [fake::add_domain(system, 0, 16), fake::add_domain(system, 5, 16)];
        let [dom0, guest] = domains.map(|domain| Running::new(system, &domain));
        (dom0, guest)
    }

    fn no(errno: Errno) -> i64 {
        errno.as_return()
    }

    /// A text of a fixed length, and that nothing behind it was touched.
    fn text<const N: usize>(running: &mut Running, operation: u32) -> (i64, String) {
        running.poke(page(1), &[0xffu8; 4096]);
        let result = running.call(XEN_VERSION, &[operation.into(), page(1)]).0;
        assert_eq!(running.peek::<u8>(page(1) + N as u64), 0xff);
        let bytes: [u8; 4096] = running.peek(page(1));
        let length = bytes.iter().position(|byte| *byte == 0).unwrap_or(0);
        (result, String::from_utf8(bytes[..length].to_vec()).unwrap())
    }

    #[test]
    fn it_is_xen_4_20_that_runs_every_kind_of_hvm_guest() {
        let (mut dom0, _) = pair();
        assert_eq!(dom0.call(XEN_VERSION, &[0]).0, 4 << 16 | 20);
        assert_eq!(dom0.call(XEN_VERSION, &[1 << 32]).0, 4 << 16 | 20, "operations have 32 bits");
        assert_eq!(dom0.call(XEN_VERSION, &[XENVER_PAGESIZE.into()]).0, 4096);
        assert_eq!(text::<EXTRAVERSION_LEN>(&mut dom0, XENVER_EXTRAVERSION), (0, EXTRA_VERSION.into()));
        let (result, capabilities) = text::<CAPABILITIES_INFO_LEN>(&mut dom0, XENVER_CAPABILITIES);
        assert_eq!(result, 0);
        for kind in ["hvm-3.0-x86_32 ", "hvm-3.0-x86_32p ", "hvm-3.0-x86_64 "] {
            assert!(capabilities.contains(kind));
        }
        assert_eq!(text::<CHANGESET_INFO_LEN>(&mut dom0, XENVER_CHANGESET), (0, CHANGESET.into()));
        const COMPILE_INFO: usize = size_of::<CompileInfo>();
        assert_eq!(text::<COMPILE_INFO>(&mut dom0, XENVER_COMPILE_INFO), (0, COMPILER.into()));
        assert_eq!(text::<16>(&mut dom0, XENVER_GUEST_HANDLE), (0, String::new()));
    }

    #[test]
    fn the_command_line_is_dom0s_to_know() {
        let (mut dom0, mut guest) = pair();
        assert_eq!(text::<COMMANDLINE_LEN>(&mut dom0, XENVER_COMMANDLINE), (0, "dom0_mem=fake".into()));
        assert_eq!(text::<COMMANDLINE_LEN>(&mut guest, XENVER_COMMANDLINE), (0, DENIED.into()));
        assert_eq!(dom0.call(XEN_VERSION, &[XENVER_COMMANDLINE2.into(), 0]).0, 13);
        for operation in [XENVER_COMMANDLINE2, XENVER_BUILD_ID] {
            assert_eq!(guest.call(XEN_VERSION, &[operation.into(), 0]).0, no(Errno::EPERM));
        }
        assert_eq!(dom0.call(XEN_VERSION, &[XENVER_BUILD_ID.into(), 0]).0, no(Errno::ENODATA));
    }

    #[test]
    fn texts_of_any_length_need_room_and_say_how_much() {
        let (mut dom0, _) = pair();
        let length = EXTRA_VERSION.len() as i64;
        let mut ask = |room: u32| {
            dom0.poke(page(1), &[room, u32::MAX, u32::MAX, u32::MAX]);
            let result = dom0.call(XEN_VERSION, &[XENVER_EXTRAVERSION2.into(), page(1)]).0;
            (result, dom0.peek::<[u8; 16]>(page(1)))
        };
        assert_eq!(ask(0).0, no(Errno::EINVAL));
        assert_eq!(ask(length as u32 - 1).0, no(Errno::ENOBUFS));
        let (result, bytes) = ask(length as u32);
        assert_eq!((result, &bytes[4..4 + EXTRA_VERSION.len()]), (length, EXTRA_VERSION.as_bytes()));
        assert_eq!(bytes[4 + EXTRA_VERSION.len()], 0xff);
        for operation in [XENVER_EXTRAVERSION2, XENVER_CAPABILITIES2, XENVER_CHANGESET2] {
            assert!(dom0.call(XEN_VERSION, &[operation.into(), 0]).0 > 0);
        }
    }

    #[test]
    fn features_say_who_and_how_the_domain_is() {
        let (dom0, guest) = pair();
        let system = fake::system(1024);
        let direct = fake::add(system, Wanted { id: 3, one_to_one: true, ..Wanted::default() });
        let direct = Running::new(system, &direct);
        for (mut running, is_dom0, is_direct) in [(dom0, true, false), (guest, false, false), (direct, false, true)] {
            let mut info = FeatureInfo::default();
            assert_eq!(running.op(XEN_VERSION, XENVER_GET_FEATURES, &mut info), 0);
            let has = |bit: u32| info.submap & 1 << bit != 0;
            assert_eq!(has(XENFEAT_DOM0), is_dom0);
            assert_eq!((has(XENFEAT_DIRECT_MAPPED), has(XENFEAT_NOT_DIRECT_MAPPED)), (is_direct, !is_direct));
            assert!(has(XENFEAT_AUTO_TRANSLATED_PHYSMAP) && !has(XENFEAT_HVM_PIRQS));
            let mut info = FeatureInfo { submap_idx: XENFEAT_NR_SUBMAPS, submap: 7 };
            assert_eq!(running.op(XEN_VERSION, XENVER_GET_FEATURES, &mut info), no(Errno::EINVAL));
        }
    }

    #[test]
    fn a_32_bit_caller_is_told_of_its_own_width() {
        let (mut dom0, _) = pair();
        dom0.context.width = Width::Bits32;
        dom0.poke(page(1), &[u32::MAX; 2]);
        assert_eq!(dom0.call(XEN_VERSION, &[XENVER_PLATFORM_PARAMETERS.into(), page(1)]).0, 0);
        assert_eq!(dom0.peek::<[u32; 2]>(page(1)), [0, u32::MAX]);
        assert_eq!(dom0.call(XEN_VERSION, &[XENVER_EXTRAVERSION.into(), page(1) | 0xdead << 32]).0, 0);
        assert_eq!(dom0.call(XEN_VERSION, &[99, page(1)]).0, no(Errno::ENOSYS));
    }
}
