//! Runs inside Dom0's Linux, without a C library: says how many pages are free (`FREE n`), and how many each domain has (`DOMAIN id n`),
//! to the page. `xl info` says MiB.

#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

use xen_abi::domctl::GetDomainInfo;
use xen_abi::handle::GuestHandle;
use xen_abi::numbers::SYSCTL;
use xen_abi::sysctl::{
    GetDomainInfoList, PhysInfo, Sysctl, XEN_SYSCTL_GETDOMAININFOLIST, XEN_SYSCTL_INTERFACE_VERSION,
    XEN_SYSCTL_PHYSINFO,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

const WRITE: u64 = 1;
const OPEN: u64 = 2;
const IOCTL: u64 = 16;
const EXIT: u64 = 60;
const O_RDWR: u64 = 2;
/// `IOCTL_PRIVCMD_HYPERCALL` (xen/privcmd.h): of group `P`, number 0, with an argument of 48 bytes.
const PRIVCMD_HYPERCALL: u64 = 48 << 16 | (b'P' as u64) << 8;
const DOMAINS: usize = 8;

global_asm!(".global _start", "_start:", "and rsp, -16", "call helper_main", "ud2");

fn syscall(number: u64, a: u64, b: u64, c: u64) -> i64 {
    let result;
    // SAFETY: what the calls made here write is what their arguments point at, and those are the caller's.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c,
            lateout("rcx") _, lateout("r11") _, options(nostack))
    };
    result
}

fn exit(status: u64) -> ! {
    syscall(EXIT, status, 0, 0);
    loop {
        core::hint::spin_loop();
    }
}

/// Ends the program where the hypervisor refuses.
fn sysctl<T: IntoBytes + Immutable + FromBytes>(privcmd: u64, cmd: u32, argument: &T) -> T {
    let mut op = Sysctl { cmd, interface_version: XEN_SYSCTL_INTERFACE_VERSION, ..Sysctl::default() };
    op.u.set(argument);
    let hypercall = [SYSCTL, core::ptr::from_mut(&mut op) as u64, 0, 0, 0, 0];
    if syscall(IOCTL, privcmd, PRIVCMD_HYPERCALL, hypercall.as_ptr() as u64) < 0 {
        exit(2);
    }
    op.u.get()
}

/// A line of words and numbers.
#[derive(Default)]
struct Line {
    text: [u8; 32],
    len: usize,
}

impl Line {
    fn push(&mut self, bytes: &[u8]) {
        for (to, from) in self.text.iter_mut().skip(self.len).zip(bytes) {
            *to = *from;
            self.len += 1;
        }
    }

    fn number(&mut self, mut value: u64) {
        let (mut digits, mut start) = ([b' '; 21], 21);
        loop {
            start -= 1;
            digits[start] = b'0' + (value % 10) as u8;
            value /= 10;
            if value == 0 {
                break;
            }
        }
        self.push(b" ");
        self.push(&digits[start..]);
    }

    fn print(mut self) {
        self.push(b"\n");
        syscall(WRITE, 1, self.text.as_ptr() as u64, self.len as u64);
    }
}

#[unsafe(no_mangle)]
extern "C" fn helper_main() -> ! {
    let privcmd = syscall(OPEN, c"/dev/xen/privcmd".as_ptr() as u64, O_RDWR, 0);
    if privcmd < 0 {
        exit(1);
    }
    let info = sysctl(privcmd as u64, XEN_SYSCTL_PHYSINFO, &PhysInfo::default());
    let mut line = Line::default();
    line.push(b"FREE");
    line.number(info.free_pages);
    line.print();
    let mut domains = [GetDomainInfo::default(); DOMAINS];
    let list = GetDomainInfoList {
        max_domains: DOMAINS as u32,
        buffer: GuestHandle::new(domains.as_mut_ptr() as u64),
        ..Default::default()
    };
    let list = sysctl(privcmd as u64, XEN_SYSCTL_GETDOMAININFOLIST, &list);
    for domain in domains.iter().take(list.num_domains as usize) {
        let mut line = Line::default();
        line.push(b"DOMAIN");
        line.number(u64::from(domain.domain.0));
        line.number(domain.tot_pages);
        line.print();
    }
    exit(0)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(3)
}
