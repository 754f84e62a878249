//! The two-level ABI and its consumer.

use super::*;

const PENDING: usize = 2048;

fn mask_at(guest: &Fake) -> usize {
    PENDING + if guest.width == Width::Bits64 { 512 } else { 128 }
}

fn bit(guest: &Fake, bitmap: usize, port: Port) -> (&AtomicU8, u8) {
    (guest.shared.atomic_u8(bitmap + port.0 as usize / 8).unwrap(), 1 << (port.0 % 8))
}

pub fn set_masked(guest: &Fake, port: Port, masked: bool) {
    let (byte, bit) = bit(guest, mask_at(guest), port);
    if masked {
        byte.fetch_or(bit, Ordering::SeqCst)
    } else {
        byte.fetch_and(!bit, Ordering::SeqCst)
    };
}

pub fn clear_pending(guest: &Fake, port: Port) {
    let (byte, bit) = bit(guest, PENDING, port);
    byte.fetch_and(!bit, Ordering::SeqCst);
}

fn selector(guest: &Fake, vcpu: u32) -> &AtomicU64 {
    let (page, offset) = guest.info(VcpuId(vcpu)).unwrap();
    page.atomic_u64(offset + 8).unwrap()
}

/// A guest's upcall handler: takes the unmasked events that its selector leads to. Ports that `mine` leaves out stay pending, as
/// Linux leaves to each CPU the ports bound to it.
pub fn take_if(guest: &Fake, vcpu: u32, mine: impl Fn(Port) -> bool) -> Vec<Port> {
    guest.upcall_pending(vcpu).store(0, Ordering::SeqCst);
    let mut words = selector(guest, vcpu).swap(0, Ordering::SeqCst);
    let mut taken = Vec::new();
    while words != 0 {
        let word = words.trailing_zeros();
        words &= words - 1;
        let pending = guest.shared.atomic_u64(PENDING + word as usize * 8).unwrap().load(Ordering::SeqCst);
        let masked = guest.shared.atomic_u64(mask_at(guest) + word as usize * 8).unwrap().load(Ordering::SeqCst);
        let ports = (0..64).filter(|bit| (pending & !masked) >> bit & 1 != 0).map(|bit| Port(word * 64 + bit));
        for port in ports.filter(|&port| mine(port)) {
            clear_pending(guest, port);
            taken.push(port);
        }
    }
    taken
}

pub fn take(guest: &Fake, vcpu: u32) -> Vec<Port> {
    take_if(guest, vcpu, |_| true)
}

#[test]
fn an_event_is_seen_by_its_vcpu_with_one_upcall() {
    let fake = Fake::new(5);
    let port = fake.ipi(2);
    fake.send(port);
    fake.send(port);
    assert_eq!(fake.take_upcalls(), [2]);
    assert_eq!((take(&fake, 0), take(&fake, 2), take(&fake, 2)), (vec![], vec![port], vec![]));
    fake.send(port);
    assert_eq!(fake.take_upcalls(), [2]);
}

#[test]
fn several_events_share_one_upcall() {
    let fake = Fake::new(5);
    let ports: Vec<Port> = (0..130).map(|_| fake.ipi(1)).collect();
    ports.iter().for_each(|&port| fake.send(port));
    assert_eq!(fake.take_upcalls(), [1]);
    assert_eq!(take(&fake, 1), ports);
}

#[test]
fn an_event_masked_then_unmasked_is_delivered_once() {
    let fake = Fake::new(5);
    let port = fake.ipi(1);
    set_masked(&fake, port, true);
    fake.send(port);
    assert!(fake.take_upcalls().is_empty() && take(&fake, 1).is_empty());
    unmask(&fake, port).unwrap();
    unmask(&fake, port).unwrap();
    assert_eq!(fake.take_upcalls(), [1]);
    assert_eq!(take(&fake, 1), [port]);
    unmask(&fake, port).unwrap();
    assert!(fake.take_upcalls().is_empty());
}

#[test]
fn pending_event_survives_migration_to_another_vcpu() {
    let fake = Fake::new(5);
    let port = bind_virq(&fake, abi::VIRQ_CONSOLE, VcpuId(0)).unwrap();
    // As Linux moves a port: masked, and unmasked once it is at its new place.
    set_masked(&fake, port, true);
    send_virq(&fake, VcpuId(0), abi::VIRQ_CONSOLE);
    bind_vcpu(&fake, port, VcpuId(1)).unwrap();
    unmask(&fake, port).unwrap();
    assert_eq!(fake.take_upcalls(), [1]);
    assert_eq!((take(&fake, 0), take(&fake, 1)), (vec![], vec![port]));
}

#[test]
fn a_32_bit_guest_finds_its_bits_in_its_own_layout() {
    let fake = Fake::with(5, Width::Bits32, ALL_PORTS);
    let port = (0..70).map(|_| fake.ipi(1)).last().unwrap();
    set_masked(&fake, port, true);
    fake.send(port);
    let word = |offset| fake.shared.atomic_u32(offset).unwrap().load(Ordering::SeqCst);
    assert_eq!(word(PENDING + 8), 1 << (70 - 64));
    assert_eq!(word(64 + 4), 0);
    unmask(&fake, port).unwrap();
    assert_eq!(word(64 + 4), 1 << (70 / 32), "the selector is 32 bits wide and comes right after the two bytes");
    assert_eq!(fake.take_upcalls(), [1]);
}

#[test]
fn a_moved_vcpu_info_has_everything_marked() {
    let fake = Fake::new(5);
    let port = fake.ipi(1);
    fake.send(port);
    fake.take_upcalls();
    fake.infos[1].set(page().0).ok().unwrap();
    info_moved(&fake, VcpuId(1));
    assert_eq!(fake.take_upcalls(), [1]);
    assert_eq!(selector(&fake, 1).load(Ordering::SeqCst), u64::MAX);
    assert_eq!(take(&fake, 1), [port]);
}

#[test]
fn a_closed_port_leaves_no_event_to_its_next_owner() {
    let fake = Fake::new(5);
    let port = fake.ipi(1);
    fake.send(port);
    fake.close(port).unwrap();
    assert_eq!(fake.ipi(0), port);
    assert!(!is_pending(&fake, port).unwrap());
}
