//! Nobody waits for ever, whatever the others do.

use super::*;
use proptest::prelude::*;

fn pattern() -> impl Strategy<Value = Pattern> {
    let run = prop_oneof![1_000..100_000u64, 100_000..30_000_000u64].prop_map(Nanos);
    let sleep = prop_oneof![1_000..100_000u64, 100_000..60_000_000u64].prop_map(Nanos);
    prop_oneof![
        2 => Just(Pattern::Hog),
        1 => run.clone().prop_map(Pattern::Yielder),
        4 => prop::collection::vec((run, sleep), 1..8).prop_map(Pattern::Script),
    ]
}

fn guest() -> impl Strategy<Value = Guest> {
    let weight = prop_oneof![Just(256u32), 32..2048u32];
    (pattern(), weight, 0..50_000_000u64)
        .prop_map(|(pattern, weight, start)| Guest { start: Nanos(start), ..Guest::new(pattern, weight) })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_vcpu_starves_under_any_arrival_pattern(
        guests in prop::collection::vec(guest(), 1..14),
        cpus in 1..5usize,
        queue in 1..5usize,
    ) {
        let mut machine = machine(cpus, queue, &guests);
        machine.run_until(Nanos::from_secs(3));
        let total: u64 = guests.iter().map(|guest| u64::from(guest.weight)).sum();
        let heaviest = guests.iter().map(|guest| u64::from(guest.weight)).max().unwrap_or(1);
        for (guest, vcpu) in guests.iter().zip(&machine.vcpus) {
            // Sleepers may each come with a little more than a full credit (up to 20 ms of the heaviest), when this one has just used up as
            // much; and it waits for as long as the others need to have run by weight what its own last slice was.
            let bound = Nanos(60_000_000 * total / heaviest + 20_000_000 * total / u64::from(guest.weight));
            prop_assert!(vcpu.longest_wait <= bound, "one of weight {} waited {}, more than {bound}", guest.weight, vcpu.longest_wait);
        }
    }
}
