//! A domain that attacks: what it does, `attack=` on its command line says (hexadecimal, as all numbers there).

#![no_std]
#![no_main]

use tests_qemu::hypercall::{call, grant_op, op, vcpu_op};
use tests_qemu::random::Random;
use tests_qemu::start::number;
use tests_qemu::tests::Tests;
use tests_qemu::{clock, cpu, events, memory, power, say, start};
use xen_abi::domctl::XEN_DOMCTL_INTERFACE_VERSION;
use xen_abi::grant::*;
use xen_abi::memory::{
    RemoveFromPhysmap, XENMEM_DECREASE_RESERVATION, XENMEM_POPULATE_PHYSMAP, XENMEM_REMOVE_FROM_PHYSMAP,
};
use xen_abi::numbers::*;
use xen_abi::platform::XENPF_INTERFACE_VERSION;
use xen_abi::sysctl::XEN_SYSCTL_INTERFACE_VERSION;
use xen_abi::types::{DomainId, GrantRef};
use xen_abi::vcpu::{SetSingleshotTimer, VCPUOP_DOWN, VCPUOP_SET_SINGLESHOT_TIMER};

tests_qemu::guest!(main);

const EPERM: i64 = -1;
/// Far more than any limit.
const MANY: u64 = 100_000;

fn main(t: &mut Tests) {
    match number("attack").unwrap_or(0) {
        0 => loop {
            core::hint::spin_loop();
        },
        1 => {}
        2 => cpu::stop(),
        3 => ports(t),
        4 => grants(t),
        5 => memory_beyond(t),
        6 => timers(t),
        7 => control(t),
        8 => storm(t),
        _ => t.check("the attack is known", false),
    }
    power::shut_down(1);
}

/// Opens event channels until there are no more.
fn ports(t: &mut Tests) {
    let (mut opened, mut error) = (0, 0);
    for _ in 0..MANY {
        match events::alloc_unbound(DomainId(0)) {
            Ok(_) => opened += 1,
            Err(why) => {
                error = why;
                break;
            }
        }
    }
    t.within("event channels are limited", opened, 1, 1100);
    t.returns("then there is no room", error, -28);
}

/// Asks for grant frames, and maps its own grants, until there are no more.
fn grants(t: &mut Tests) {
    let mut query = [QuerySize { dom: DomainId::SELF, ..Default::default() }];
    grant_op(GNTTABOP_QUERY_SIZE, &mut query);
    t.within("grant frames are limited", query[0].max_nr_frames.into(), 1, 4);
    let table = memory::page();
    t.returns("its first frame is there", memory::add_to_physmap(1, 0, memory::gfn(table)), 0);
    t.check("none beyond the limit", memory::add_to_physmap(1, 9, memory::gfn(memory::page())) < 0);
    let page = memory::page();
    cpu::write32(table + 8 * 9 + 4, memory::gfn(page) as u32);
    let own = own_id();
    cpu::write32(table + 8 * 9, u32::from(GTF_PERMIT_ACCESS) | own << 16);
    let refused = (0..MANY).find_map(|index| Some((index, map_own(9, own, index).err()?)));
    let (mapped, status) = refused.unwrap_or((MANY, 0));
    say!("{mapped} mappings, then {status}");
    t.within("mappings are limited", mapped, 1, 19_999);
    t.check("and then refused", status < 0);
}

/// Asks for more memory than it may have.
fn memory_beyond(t: &mut Tests) {
    let mut more = 0;
    for index in 0..MANY {
        if memory::reserve(XENMEM_POPULATE_PHYSMAP, &[0x10_0000 + index], 0) != 1 {
            break;
        }
        more += 1;
    }
    t.equal("it has all that it may have", more, 0);
    let kept = kept(t);
    // Its grant table is in the place of a page.
    t.equal("and what it gives up but still uses counts", kept, 1);
}

/// Maps pages of its own by grants, gives them up, and asks for others in their place, until there are no more; how many it got.
fn kept(t: &mut Tests) -> u64 {
    const FIRST: u64 = 16;
    let (table, page) = (memory::page(), memory::gfn(memory::page()));
    t.returns("a grant table", memory::add_to_physmap(1, 0, memory::gfn(table)), 0);
    let own = own_id();
    for index in 0..400 {
        let entry = table + 8 * (FIRST + index);
        cpu::write32(entry + 4, page as u32);
        cpu::write32(entry, u32::from(GTF_PERMIT_ACCESS) | own << 16);
        t.equal("it maps its own page", map_own((FIRST + index) as u32, own, index), Ok(()));
        t.returns("it gives the page up", memory::reserve(XENMEM_DECREASE_RESERVATION, &[page], 0), 1);
        if memory::reserve(XENMEM_POPULATE_PHYSMAP, &[page], 0) != 1 {
            return index;
        }
    }
    400
}

fn own_id() -> u32 {
    cpu::cpuid(0x4000_0004, 0).ecx
}

/// Maps a grant of one's own at the page with this number in a hole; the error is its status.
fn map_own(gref: u32, own: u32, number: u64) -> Result<(), i16> {
    let mut map = [MapGrantRef {
        host_addr: (0x1_0000_0000 >> 4) + number * 4096,
        flags: GNTMAP_HOST_MAP,
        gref: GrantRef(gref),
        dom: DomainId(own as u16),
        ..Default::default()
    }];
    match (grant_op(GNTTABOP_MAP_GRANT_REF, &mut map), map[0].status) {
        (0, 0) => Ok(()),
        (_, status) => Err(status),
    }
}

/// Sets timers as fast as it can, for now and for never.
fn timers(t: &mut Tests) {
    let mut random = Random(7);
    let mut errors = 0;
    for _ in 0..MANY {
        let mut timer =
            SetSingleshotTimer { timeout_abs_ns: clock::now() + random.below(1 << 20), ..Default::default() };
        errors += u32::from(vcpu_op(VCPUOP_SET_SINGLESHOT_TIMER, 0, &mut timer) != 0);
    }
    t.equal("timers are set one over the other", errors, 0);
}

/// Does what only Dom0 may, with arguments that would do for Dom0.
fn control(t: &mut Tests) {
    let page = memory::page();
    let (mut allowed, mut asked) = (0, 0);
    for (number, version, most) in [
        (DOMCTL, XEN_DOMCTL_INTERFACE_VERSION, 90),
        (SYSCTL, XEN_SYSCTL_INTERFACE_VERSION, 31),
        (PLATFORM_OP, XENPF_INTERFACE_VERSION, 70),
    ] {
        for cmd in 0..most {
            cpu::write32(page, cmd);
            cpu::write32(page + 4, version);
            asked += 1;
            allowed += u32::from(call(number, [page, 0, 0, 0, 0]) != EPERM);
        }
    }
    t.equal("nothing of it is allowed", allowed, 0);
    t.check("and much was asked", asked > 150);
    for operation in [XENMEM_POPULATE_PHYSMAP, XENMEM_REMOVE_FROM_PHYSMAP] {
        let mut argument = [0u64, 1, 0, 0];
        t.check("others' memory is theirs", op(MEMORY_OP, operation, &mut argument) <= 0);
    }
}

/// Any hypercalls with any arguments, its own memory taken away and given back meanwhile.
fn storm(t: &mut Tests) {
    const PLACE: u64 = 0xffa0_0000;
    let calls = number("calls").unwrap_or(1000);
    let mut random = Random(number("seed").unwrap_or(1));
    let table = memory::page();
    let own = [memory::page(), memory::page()];
    for (index, page) in own.iter().enumerate() {
        cpu::write64(table + index as u64 * 8, page | 3);
    }
    start::map_table(PLACE, table);
    // Small numbers point at memory that nobody uses, and what is there comes and goes.
    start::map_table(0, memory::page());
    let (mut refused, mut odd) = (0u64, 0u64);
    for made in 0..calls {
        // The second page of the arguments is not there for a while.
        if made % 64 == 40 {
            let mut remove =
                RemoveFromPhysmap { domid: DomainId::SELF, gpfn: memory::gfn(own[1]), ..Default::default() };
            odd += u64::from(op(MEMORY_OP, XENMEM_REMOVE_FROM_PHYSMAP, &mut remove) != 0);
        }
        if made % 64 == 56 {
            odd += u64::from(memory::reserve(XENMEM_POPULATE_PHYSMAP, &[memory::gfn(own[1])], 0) != 1);
        }
        if made % 64 == 0 {
            for word in 0..1024 {
                cpu::write64(PLACE + word * 8, random.word(PLACE));
            }
        }
        let hypercall = random.below(56);
        let arguments: [u64; 5] = core::array::from_fn(|_| random.argument(PLACE));
        if !survives(hypercall, arguments) {
            continue;
        }
        let result = call(hypercall, arguments);
        refused += u64::from(result < 0);
        odd += u64::from(result < -4095);
        if made % 50_000 == 49_999 {
            say!("{} calls", made + 1);
        }
    }
    t.equal("every error is an errno, and its page comes back", odd, 0);
    t.check("most are refused", refused > calls / 4);
    t.returns("hypercalls still work", call(XEN_VERSION, [0; 5]), 4 << 16 | 20);
}

/// Whether the domain can be expected to live on afterwards.
fn survives(number: u64, [a, ..]: [u64; 5]) -> bool {
    let operation = a as u32;
    match number {
        // It would shut down, or sleep.
        SCHED_OP => !matches!(operation, 1..=6),
        SCHED_OP_COMPAT => false,
        VCPU_OP => operation != VCPUOP_DOWN,
        // A batch may hold any of these.
        MULTICALL => false,
        // Its own code might go.
        MEMORY_OP => !matches!(operation & 0x3f, 1 | 7 | 11 | 15 | 23),
        _ => true,
    }
}
