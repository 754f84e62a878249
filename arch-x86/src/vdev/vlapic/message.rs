//! An interrupt on its way to one or more local APICs of one domain, wherever it came from: an ICR, an I/O APIC's pin
//! or an MSI. Which vCPUs it reaches is a pure function over the identities of the owning domain's APICs, so nothing
//! outside that domain can be addressed.

use core::ops::RangeInclusive;

/// SDM Vol. 3, 11.6.1: what the receiving APIC does with the message.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    Fixed,
    LowestPriority,
    Smi,
    Nmi,
    Init,
    StartUp,
    /// From an 8259, which no domain has; accepted by no one.
    ExtInt,
    Reserved,
}

impl Delivery {
    /// From bits 10:8 of an ICR, a redirection entry, an LVT entry or an MSI's data: all encode it alike.
    #[inline]
    pub const fn from_bits(bits: u64) -> Delivery {
        match (bits >> 8) & 7 {
            0 => Delivery::Fixed,
            1 => Delivery::LowestPriority,
            2 => Delivery::Smi,
            4 => Delivery::Nmi,
            5 => Delivery::Init,
            6 => Delivery::StartUp,
            7 => Delivery::ExtInt,
            _ => Delivery::Reserved,
        }
    }
}

/// Whose numbering a destination uses: it decides what "everyone" is.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Numbering {
    /// An ICR in xAPIC mode: 8 bits, 0xff is everyone.
    Xapic,
    /// An ICR in x2APIC mode: 32 bits, all ones is everyone.
    X2apic,
    /// An MSI or a redirection entry: 8 bits, or 15 with XEN_HVM_CPUID_EXT_DEST_ID. 0xff is everyone in xAPIC mode
    /// only: a vCPU in x2APIC mode may have that very id.
    Message,
}

/// A destination field together with its mode.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    pub id: u32,
    pub logical: bool,
    pub numbering: Numbering,
}

/// SDM Vol. 3, 11.4.3 and 11.12: the state that the APIC base MSR puts a local APIC in.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Off by the APIC base MSR: accepts INIT, NMI and SIPI only.
    Disabled,
    Xapic,
    X2apic,
}

/// What of a local APIC decides whether a message reaches it: one word, so that other CPUs read it whole.
#[derive(Copy, Clone, PartialEq, Eq)]
#[repr(transparent)]
pub struct Identity(u64);

impl Identity {
    // Bits 31:0 are the x2APIC id.
    const XAPIC: u64 = 1 << 32;
    const X2APIC: u64 = 1 << 33;
    const SOFTWARE_ENABLED: u64 = 1 << 34;
    const CLUSTER: u64 = 1 << 35;
    /// Both enabled: fixed interrupts are accepted.
    const ACCEPTS_FIXED: u64 = 1 << 36;
    const LOGICAL_SHIFT: u32 = 40;

    /// `software_enabled` is the spurious vector register's enable bit; `logical_id` is bits 31:24 of the LDR and
    /// `cluster` the model that the DFR selects, which both have a meaning in xAPIC mode only.
    pub const fn new(x2apic_id: u32, mode: Mode, software_enabled: bool, logical_id: u8, cluster: bool) -> Identity {
        let mode = match mode {
            Mode::Disabled => 0,
            Mode::Xapic => Identity::XAPIC,
            Mode::X2apic => Identity::X2APIC,
        };
        let enabled = match (mode, software_enabled) {
            (0, true) => Identity::SOFTWARE_ENABLED,
            (_, true) => Identity::SOFTWARE_ENABLED | Identity::ACCEPTS_FIXED,
            (_, false) => 0,
        };
        let cluster = if cluster { Identity::CLUSTER } else { 0 };
        Identity(x2apic_id as u64 | mode | enabled | cluster | (logical_id as u64) << Identity::LOGICAL_SHIFT)
    }

    #[inline]
    pub(super) const fn from_bits(bits: u64) -> Identity {
        Identity(bits)
    }

    #[inline]
    pub(super) const fn bits(self) -> u64 {
        self.0
    }

    #[inline]
    pub const fn x2apic_id(self) -> u32 {
        self.0 as u32
    }

    pub const fn mode(self) -> Mode {
        if self.is_x2apic() {
            Mode::X2apic
        } else if self.0 & Identity::XAPIC != 0 {
            Mode::Xapic
        } else {
            Mode::Disabled
        }
    }

    #[inline]
    const fn is_x2apic(self) -> bool {
        self.0 & Identity::X2APIC != 0
    }

    pub const fn is_software_enabled(self) -> bool {
        self.0 & Identity::SOFTWARE_ENABLED != 0
    }

    pub const fn logical_id(self) -> u8 {
        (self.0 >> Identity::LOGICAL_SHIFT) as u8
    }

    pub const fn is_cluster(self) -> bool {
        self.0 & Identity::CLUSTER != 0
    }

    /// Whether a message with this delivery mode is accepted at all. SDM Vol. 3, 11.4.7.2: an APIC that is off by
    /// software still takes INIT, NMI and start-up.
    #[inline]
    pub const fn accepts(self, delivery: Delivery) -> bool {
        match delivery {
            Delivery::Fixed | Delivery::LowestPriority => self.0 & Identity::ACCEPTS_FIXED != 0,
            Delivery::Nmi | Delivery::Init | Delivery::StartUp => true,
            Delivery::Smi | Delivery::ExtInt | Delivery::Reserved => false,
        }
    }
}

impl core::fmt::Debug for Identity {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Identity")
            .field("x2apic_id", &self.x2apic_id())
            .field("mode", &self.mode())
            .field("software_enabled", &self.is_software_enabled())
            .field("logical_id", &self.logical_id())
            .field("cluster", &self.is_cluster())
            .finish()
    }
}

/// SDM Vol. 3, 11.12.10.2: in x2APIC mode the logical id follows from the id: 16 vCPUs a cluster.
#[inline]
pub const fn x2apic_logical_id(x2apic_id: u32) -> u32 {
    (x2apic_id >> 4) << 16 | 1 << (x2apic_id & 0xf)
}

impl Destination {
    pub const fn physical(id: u32, numbering: Numbering) -> Destination {
        Destination { id, logical: false, numbering }
    }

    pub const fn logical(id: u32, numbering: Numbering) -> Destination {
        Destination { id, logical: true, numbering }
    }

    /// Whether the message goes to every APIC of the domain, of those in x2APIC mode or of the others.
    #[inline]
    const fn is_everyone(self, x2apic: bool) -> bool {
        match self.numbering {
            Numbering::Xapic => self.id == 0xff,
            Numbering::X2apic => self.id == u32::MAX,
            Numbering::Message => self.id == 0xff && !x2apic,
        }
    }

    /// Whether the destination names this APIC.
    #[inline]
    pub const fn matches(self, apic: Identity) -> bool {
        if self.is_everyone(apic.is_x2apic()) {
            true
        } else if !self.logical {
            self.id == apic.x2apic_id()
        } else if apic.is_x2apic() {
            let ldr = x2apic_logical_id(apic.x2apic_id());
            self.id >> 16 == ldr >> 16 && self.id & ldr & 0xffff != 0
        } else {
            // An APIC that is off has lost its logical id: it is zero.
            let ldr = apic.logical_id() as u32;
            if self.id > 0xff {
                false
            } else if apic.is_cluster() {
                (self.id >> 4 == ldr >> 4 || self.id >> 4 == 0xf) && self.id & ldr & 0xf != 0
            } else {
                self.id & ldr != 0
            }
        }
    }

    /// The ids among which every receiver is to be found. A domain that finds its vCPUs by id need not look at the
    /// others.
    #[inline]
    pub const fn candidates(self) -> RangeInclusive<u32> {
        if self.is_everyone(false) || (self.logical && self.id <= 0xffff) {
            // Any id may have any logical id in xAPIC mode.
            0..=u32::MAX
        } else if self.logical {
            let first = self.id >> 16 << 4;
            first..=first | 0xf
        } else {
            self.id..=self.id
        }
    }
}

/// Who a message is for.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Destination(Destination),
    /// The shorthands of the ICR.
    Myself,
    Everyone,
    EveryoneElse,
}

/// An interrupt message.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub vector: u8,
    pub delivery: Delivery,
    /// Level-triggered: its EOI is broadcast to the I/O APICs.
    pub level: bool,
    pub target: Target,
}

impl Message {
    /// Decodes an MSI, as a device would write it (SDM Vol. 3, 11.11), with the extended destination of
    /// XEN_HVM_CPUID_EXT_DEST_ID: bits 11:5 of the address are bits 14:8 of the destination. None if the address
    /// is not in the MSI window.
    pub const fn from_msi(address: u64, data: u32) -> Option<Message> {
        if address >> 20 != 0xfee {
            return None;
        }
        let id = ((address >> 12) & 0xff) as u32 | (((address >> 5) & 0x7f) as u32) << 8;
        let destination = Destination { id, logical: address & 1 << 2 != 0, numbering: Numbering::Message };
        Some(Message {
            vector: data as u8,
            delivery: Delivery::from_bits(data as u64),
            level: data & 1 << 15 != 0,
            target: Target::Destination(destination),
        })
    }

    /// The APICs, out of a domain's, that the message reaches, by whatever key the domain knows them. `sender` is the
    /// key of the vCPU whose ICR sent it, None for a device. Lowest priority goes to one of the matching ones: `turn`,
    /// which the caller counts up, shares the load among them, as the SDM leaves the choice to the platform.
    pub fn receivers<K, I>(self, sender: Option<K>, apics: I, turn: usize) -> impl Iterator<Item = K>
    where
        K: Copy + PartialEq,
        I: Iterator<Item = (K, Identity)> + Clone,
    {
        let reached = move |&(key, apic): &(K, Identity)| {
            apic.accepts(self.delivery)
                && match self.target {
                    Target::Destination(destination) => destination.matches(apic),
                    Target::Myself => sender == Some(key),
                    Target::Everyone => true,
                    Target::EveryoneElse => sender != Some(key),
                }
        };
        let (skip, take) = match self.delivery {
            Delivery::LowestPriority => (turn.checked_rem(apics.clone().filter(reached).count()).unwrap_or(0), 1),
            _ => (0, usize::MAX),
        };
        apics.filter(reached).map(|(key, _)| key).skip(skip).take(take)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn xapic(id: u32, logical_id: u8, cluster: bool) -> Identity {
        Identity::new(id, Mode::Xapic, true, logical_id, cluster)
    }

    fn x2apic(id: u32) -> Identity {
        Identity::new(id, Mode::X2apic, true, 0, false)
    }

    fn fixed(target: Target) -> Message {
        Message { vector: 0x40, delivery: Delivery::Fixed, level: false, target }
    }

    /// Four vCPUs with Xen's APIC ids, twice the vCPU's.
    fn four(make: impl Fn(u32) -> Identity) -> Vec<(u32, Identity)> {
        (0..4).map(|vcpu| (vcpu, make(vcpu * 2))).collect()
    }

    fn reached(message: Message, sender: Option<u32>, apics: &[(u32, Identity)]) -> Vec<u32> {
        message.receivers(sender, apics.iter().copied(), 0).collect()
    }

    #[test]
    fn a_physical_destination_reaches_exactly_the_vcpu_with_that_id() {
        let apics = four(x2apic);
        for vcpu in 0..4 {
            let to = Target::Destination(Destination::physical(vcpu * 2, Numbering::X2apic));
            assert_eq!(reached(fixed(to), Some(0), &apics), [vcpu]);
        }
        let nobody = Target::Destination(Destination::physical(3, Numbering::X2apic));
        assert!(reached(fixed(nobody), Some(0), &apics).is_empty());
    }

    #[test]
    fn all_ones_is_everyone_in_the_senders_own_numbering() {
        let mixed = [(0, x2apic(0)), (1, xapic(2, 0, false)), (2, x2apic(0xff))];
        let to = |id, numbering| fixed(Target::Destination(Destination::physical(id, numbering)));
        assert_eq!(reached(to(0xff, Numbering::Xapic), None, &mixed), [0, 1, 2]);
        assert_eq!(reached(to(u32::MAX, Numbering::X2apic), None, &mixed), [0, 1, 2]);
        assert_eq!(reached(to(0xff, Numbering::X2apic), None, &mixed), [2]);
        // A device cannot say which it means: an xAPIC hears it as everyone, an x2APIC as its id.
        assert_eq!(reached(to(0xff, Numbering::Message), None, &mixed), [1, 2]);
    }

    #[test]
    fn flat_logical_destinations_are_a_bit_mask() {
        let apics = four(|id| xapic(id, 1 << (id / 2), false));
        let to = |mask| fixed(Target::Destination(Destination::logical(mask, Numbering::Xapic)));
        assert_eq!(reached(to(0b0101), None, &apics), [0, 2]);
        assert_eq!(reached(to(0b1000), None, &apics), [3]);
        assert!(reached(to(0x10), None, &apics).is_empty());
        assert_eq!(reached(to(0xff), None, &apics), [0, 1, 2, 3]);
    }

    #[test]
    fn cluster_logical_destinations_are_a_cluster_and_a_mask() {
        let apics = [
            (0, xapic(0, 0x01, true)),
            (1, xapic(2, 0x02, true)),
            (2, xapic(4, 0x11, true)),
            (3, xapic(6, 0x12, true)),
        ];
        let to = |id| fixed(Target::Destination(Destination::logical(id, Numbering::Xapic)));
        assert_eq!(reached(to(0x03), None, &apics), [0, 1]);
        assert_eq!(reached(to(0x12), None, &apics), [3]);
        assert_eq!(reached(to(0xf1), None, &apics), [0, 2]);
        assert!(reached(to(0x23), None, &apics).is_empty());
    }

    #[test]
    fn x2apic_logical_destinations_name_sixteen_ids_a_cluster() {
        assert_eq!(x2apic_logical_id(0), 0x0000_0001);
        assert_eq!(x2apic_logical_id(0x25), 0x0002_0020);
        let apics: Vec<_> = (0..64).map(|vcpu| (vcpu, x2apic(vcpu * 2))).collect();
        let to = |id| fixed(Target::Destination(Destination::logical(id, Numbering::X2apic)));
        assert_eq!(reached(to(0x0001_0005), None, &apics), [8, 9]);
        assert_eq!(reached(to(0x0003_4000), None, &apics), [31]);
        assert!(reached(to(0x0003_8000), None, &apics).is_empty(), "odd ids belong to no one");
    }

    #[test]
    fn shorthands_count_the_sender_in_or_out() {
        let apics = four(x2apic);
        assert_eq!(reached(fixed(Target::Myself), Some(2), &apics), [2]);
        assert_eq!(reached(fixed(Target::Everyone), Some(2), &apics), [0, 1, 2, 3]);
        assert_eq!(reached(fixed(Target::EveryoneElse), Some(2), &apics), [0, 1, 3]);
    }

    #[test]
    fn lowest_priority_reaches_one_vcpu_and_takes_turns() {
        let apics = four(|id| xapic(id, 1 << (id / 2), false));
        let to = Target::Destination(Destination::logical(0b1101, Numbering::Message));
        let message = Message { delivery: Delivery::LowestPriority, ..fixed(to) };
        let turns: Vec<Vec<u32>> =
            (0..4).map(|turn| message.receivers(None, apics.iter().copied(), turn).collect()).collect();
        assert_eq!(turns, [[0], [2], [3], [0]]);
        let nobody = Target::Destination(Destination::logical(0x80, Numbering::Message));
        assert_eq!(Message { target: nobody, ..message }.receivers(None, apics.iter().copied(), 5).count(), 0);
    }

    #[test]
    fn an_apic_off_by_software_takes_nmi_init_and_startup_but_no_fixed_interrupt() {
        let off = Identity::new(2, Mode::Xapic, false, 0, false);
        let apics = [(1, off)];
        let to = Target::Destination(Destination::physical(2, Numbering::Xapic));
        for (delivery, expected) in [
            (Delivery::Fixed, false),
            (Delivery::LowestPriority, false),
            (Delivery::Nmi, true),
            (Delivery::Init, true),
            (Delivery::StartUp, true),
            (Delivery::Reserved, false),
            (Delivery::Smi, false),
        ] {
            let message = Message { delivery, ..fixed(to) };
            assert_eq!(!reached(message, None, &apics).is_empty(), expected, "{delivery:?}");
        }
    }

    #[test]
    fn an_msi_decodes_with_its_extended_destination() {
        let message = Message::from_msi(0xfee0_4000, 0x4031).unwrap();
        assert_eq!((message.vector, message.delivery, message.level), (0x31, Delivery::Fixed, false));
        assert_eq!(message.target, Target::Destination(Destination::physical(4, Numbering::Message)));
        let far = Message::from_msi(0xfee0_4000 | 1 << 5 | 1 << 2, 0x8131).unwrap();
        assert_eq!(far.target, Target::Destination(Destination::logical(0x104, Numbering::Message)));
        assert!(far.level);
        assert_eq!(far.delivery, Delivery::LowestPriority);
        assert!(Message::from_msi(0xfed0_4000, 0).is_none());
        assert!(Message::from_msi(0x1_fee0_4000, 0).is_none());
    }

    const MODES: [Mode; 3] = [Mode::Disabled, Mode::Xapic, Mode::X2apic];

    proptest! {
        #[test]
        fn an_identity_says_what_it_was_made_of(
            x2apic_id in any::<u32>(),
            mode in prop::sample::select(MODES.to_vec()),
            software_enabled in any::<bool>(),
            logical_id in any::<u8>(),
            cluster in any::<bool>(),
        ) {
            let identity = Identity::new(x2apic_id, mode, software_enabled, logical_id, cluster);
            prop_assert_eq!(identity.x2apic_id(), x2apic_id);
            prop_assert_eq!(identity.mode(), mode);
            prop_assert_eq!(identity.is_software_enabled(), software_enabled);
            prop_assert_eq!(identity.logical_id(), logical_id);
            prop_assert_eq!(identity.is_cluster(), cluster);
            prop_assert_eq!(identity.accepts(Delivery::Fixed), software_enabled && mode != Mode::Disabled);
        }

        #[test]
        fn every_receiver_is_among_the_candidates(
            other in any::<u32>(),
            mode in prop::sample::select(MODES.to_vec()),
            (logical_id, cluster) in any::<(u8, bool)>(),
            near in any::<bool>(),
            id in prop_oneof![any::<u32>(), 0..0x200u32, Just(0xffu32), Just(u32::MAX)],
            logical in any::<bool>(),
            numbering in prop::sample::select(vec![Numbering::Xapic, Numbering::X2apic, Numbering::Message]),
        ) {
            let x2apic_id = match (near, logical) {
                (true, true) => id >> 16 << 4 | other & 0xf,
                (true, false) => id,
                _ => other,
            };
            let apic = Identity::new(x2apic_id, mode, true, logical_id, cluster);
            let destination = Destination { id, logical, numbering };
            if destination.matches(apic) {
                prop_assert!(destination.candidates().contains(&x2apic_id));
            }
        }
    }
}
