//! The yardstick: what each path costs in Xen 4.20 (Bochs, from inside a PVH Dom0), and what it may cost in Corten.

/// One path. Costs are instructions, as the TSC counts them in Bochs with `sync=none`.
pub struct Cost {
    /// As the guests report it.
    pub name: &'static str,
    pub about: &'static str,
    pub xen: u64,
    pub budget: u64,
}

const fn cost(name: &'static str, about: &'static str, xen: u64, budget: u64) -> Cost {
    Cost { name, about, xen, budget }
}

pub const COSTS: &[Cost] = &[
    cost("null-hypercall", "XENVER_version", 975, 300),
    cost("unknown-hypercall", "-ENOSYS", 935, 300),
    cost("bad-pointer", "-EFAULT", 2_142, 600),
    cost("yield", "SCHEDOP_yield, alone on the CPU", 3_683, 1_000),
    cost("cpuid", "CPUID exit", 973, 300),
    cost("rdmsr", "RDMSR exit (APIC base)", 873, 300),
    cost("refused-msr", "an MSR that is refused, to its #GP", 1_086, 450),
    cost("port-in", "an emulated port (0x61)", 1_532, 450),
    cost("pci-config-read", "PCI configuration by cf8/cfc", 2_847, 900),
    cost("self-ipi", "self-IPI (x2APIC) to its handler", 1_478, 700),
    cost("io-apic-access", "an IO-APIC register", 12_800, 2_500),
    cost("p2m-hole", "an access to a hole of the p2m", 14_418, 3_000),
    cost("send-masked", "event: send, masked", 5_818, 700),
    cost("send-to-self", "event: send, to its handler", 6_305, 1_200),
    cost("alloc-unbound", "event: alloc_unbound", 10_629, 1_500),
    cost("bind-interdomain", "event: bind_interdomain", 11_348, 1_500),
    cost("close", "event: close", 5_799, 1_500),
    cost("timer-set", "timer: set_singleshot", 6_057, 1_000),
    cost("timer-stop", "timer: stop_singleshot", 1_139, 500),
    // Xen adds up to 50 µs of slop, which is 2,500 instructions here.
    cost("timer-wake", "timer to its handler, out of HLT", 7_500, 2_500),
    cost("wake-halted", "event to the handler of a halted vCPU, its CPU idle", 10_622, 2_500),
    cost("wake-send", "the same, to the sender's going on", 7_534, 2_000),
    cost("wake-ipi", "IPI (x2APIC) to the handler of a halted vCPU", 7_119, 2_200),
    cost("wake-polling", "event to the end of another vCPU's SCHEDOP_poll", 14_578, 2_300),
    cost("populate", "populate_physmap, one page", 13_687, 4_000),
    cost("decrease-reservation", "decrease_reservation, one page", 14_614, 4_000),
    cost("add-to-physmap", "add_to_physmap", 10_683, 3_000),
    cost("grant-map", "grant: map", 16_481, 4_000),
    cost("grant-unmap", "grant: unmap", 14_231, 3_500),
    cost("grant-copy-4096", "grant: copy 4 KiB", 12_969, 3_000),
    cost("grant-copy-1", "grant: copy 1 byte", 12_850, 2_500),
];

/// The guests that measure, and how many CPUs they are for.
pub const GUESTS: &[(&str, u32)] = &[("bench_exits", 1), ("bench_events", 1), ("bench_memory", 1), ("bench_wake", 2)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_of_the_table_is_measured_by_a_guest_and_none_beside() {
        let mut sources = String::new();
        for (guest, _) in GUESTS {
            let path = crate::paths::root().join(format!("tests-qemu/src/bin/{guest}.rs"));
            sources.push_str(&std::fs::read_to_string(path).expect("the guest's source"));
        }
        for cost in COSTS {
            assert!(sources.contains(&format!("\"{}\"", cost.name)), "{} is not measured", cost.name);
        }
    }
}
