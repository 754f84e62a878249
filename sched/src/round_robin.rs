//! A run queue in which everyone takes turns: what Corten runs until Credit2 takes over.

use crate::{Nanos, OutOfMemory, VcpuKey};
use alloc::vec::Vec;

#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
enum State {
    /// Not of this CPU.
    #[default]
    Absent,
    /// Has nothing to do until it is woken.
    Blocked,
    /// Waits in the queue.
    Waiting,
    /// Chosen by the last `next`.
    Running,
}

/// A vCPU's state and its neighbours while it waits in the queue.
#[derive(Copy, Clone, Debug, Default)]
struct Member {
    state: State,
    before: Option<VcpuKey>,
    after: Option<VcpuKey>,
}

/// The vCPUs of one CPU. Every operation is O(1) and, after [`RoundRobin::reserve`], allocates nothing.
#[derive(Debug, Default)]
pub struct RoundRobin {
    members: Vec<Member>,
    first: Option<VcpuKey>,
    last: Option<VcpuKey>,
    current: Option<Current>,
}

#[derive(Copy, Clone, Debug)]
struct Current {
    vcpu: VcpuKey,
    since: Nanos,
    yielded: bool,
}

impl RoundRobin {
    /// How long a vCPU runs while others wait: Xen's default `sched_ratelimit_us`, so that one that is woken waits no longer than there.
    pub const SLICE: Nanos = Nanos::from_millis(1);

    pub const fn new() -> RoundRobin {
        RoundRobin { members: Vec::new(), first: None, last: None, current: None }
    }

    /// Makes keys `0..keys` usable.
    pub fn reserve(&mut self, keys: usize) -> Result<(), OutOfMemory> {
        let more = keys.saturating_sub(self.members.len());
        self.members.try_reserve(more).map_err(|_| OutOfMemory)?;
        if more > 0 {
            self.members.resize(keys, Member::default());
        }
        Ok(())
    }

    /// Takes in a vCPU, blocked. One that is already here stays as it is.
    pub fn add(&mut self, vcpu: VcpuKey) {
        debug_assert!(vcpu.index() < self.members.len(), "vCPU key {} was never reserved", vcpu.0);
        if self.state(vcpu) == State::Absent {
            self.set_state(vcpu, State::Blocked);
        }
    }

    /// Gives up a vCPU, whatever it was doing.
    pub fn remove(&mut self, vcpu: VcpuKey) {
        self.take_off(vcpu);
        self.set_state(vcpu, State::Absent);
    }

    /// The vCPU has something to do. True if the CPU should call [`RoundRobin::next`]: it is idle, or what runs there
    /// has used up its slice, or does not yet know that it has one.
    pub fn wake(&mut self, vcpu: VcpuKey) -> bool {
        if self.state(vcpu) != State::Blocked {
            return false;
        }
        let alone = self.first.is_none();
        self.append(vcpu);
        alone
    }

    /// The vCPU has nothing to do until it is woken.
    pub fn block(&mut self, vcpu: VcpuKey) {
        if self.state(vcpu) != State::Absent {
            self.take_off(vcpu);
            self.set_state(vcpu, State::Blocked);
        }
    }

    /// What runs lets those who wait go first. Nothing changes if nobody does.
    pub fn yield_now(&mut self) {
        if let Some(current) = &mut self.current {
            current.yielded = true;
        }
    }

    /// Who runs from `now` on, and until when: no end if nobody else waits. `None` is the idle loop.
    pub fn next(&mut self, now: Nanos) -> (Option<VcpuKey>, Option<Nanos>) {
        if let Some(current) = self.current {
            let spent = current.yielded || current.since.saturating_add(Self::SLICE) <= now;
            if self.first.is_some() && spent {
                self.current = None;
                self.append(current.vcpu);
            }
        }
        let current = match self.current {
            Some(mut current) => {
                current.yielded = false;
                current
            }
            None => {
                let Some(vcpu) = self.first else { return (None, None) };
                self.unlink(vcpu);
                self.set_state(vcpu, State::Running);
                Current { vcpu, since: now, yielded: false }
            }
        };
        self.current = Some(current);
        (Some(current.vcpu), self.first.map(|_| current.since.saturating_add(Self::SLICE)))
    }

    /// Who was chosen last and has not blocked since.
    pub fn current(&self) -> Option<VcpuKey> {
        self.current.map(|current| current.vcpu)
    }

    /// Whether the vCPU runs or waits to.
    pub fn is_runnable(&self, vcpu: VcpuKey) -> bool {
        matches!(self.state(vcpu), State::Waiting | State::Running)
    }

    fn state(&self, vcpu: VcpuKey) -> State {
        self.members.get(vcpu.index()).map_or(State::Absent, |member| member.state)
    }

    fn set_state(&mut self, vcpu: VcpuKey, state: State) {
        if let Some(member) = self.members.get_mut(vcpu.index()) {
            member.state = state;
        }
    }

    fn take_off(&mut self, vcpu: VcpuKey) {
        match self.state(vcpu) {
            State::Waiting => self.unlink(vcpu),
            State::Running => self.current = None,
            State::Absent | State::Blocked => {}
        }
    }

    fn append(&mut self, vcpu: VcpuKey) {
        let before = self.last;
        if let Some(member) = self.members.get_mut(vcpu.index()) {
            *member = Member { state: State::Waiting, before, after: None };
            self.link(before, Some(vcpu));
            self.last = Some(vcpu);
        }
    }

    fn unlink(&mut self, vcpu: VcpuKey) {
        let Some(&Member { before, after, .. }) = self.members.get(vcpu.index()) else { return };
        self.link(before, after);
        match after.and_then(|key| self.members.get_mut(key.index())) {
            Some(member) => member.before = before,
            None => self.last = before,
        }
    }

    /// Makes `after` what follows `before`, where nothing stands for the head of the queue.
    fn link(&mut self, before: Option<VcpuKey>, after: Option<VcpuKey>) {
        match before.and_then(|key| self.members.get_mut(key.index())) {
            Some(member) => member.after = after,
            None => self.first = after,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    const A: VcpuKey = VcpuKey(0);
    const B: VcpuKey = VcpuKey(1);
    const C: VcpuKey = VcpuKey(2);
    const SLICE: Nanos = RoundRobin::SLICE;

    fn queue(keys: u32) -> RoundRobin {
        let mut queue = RoundRobin::new();
        queue.reserve(keys as usize).unwrap();
        (0..keys).for_each(|key| queue.add(VcpuKey(key)));
        queue
    }

    #[test]
    fn nobody_runs_until_woken() {
        let mut queue = queue(2);
        assert_eq!(queue.next(Nanos(0)), (None, None));
        assert!(queue.wake(B));
        assert_eq!(queue.next(Nanos(1)), (Some(B), None));
    }

    #[test]
    fn a_vcpu_alone_has_no_slice() {
        let mut queue = queue(2);
        queue.wake(A);
        assert_eq!(queue.next(Nanos(0)), (Some(A), None));
        assert_eq!(queue.next(SLICE + SLICE), (Some(A), None));
    }

    #[test]
    fn those_who_wait_take_turns() {
        let mut queue = queue(3);
        for vcpu in [A, B, C] {
            queue.wake(vcpu);
        }
        let mut now = Nanos(5);
        for expected in [A, B, C, A, B] {
            let (vcpu, end) = queue.next(now);
            assert_eq!((vcpu, end), (Some(expected), Some(now + SLICE)));
            now = end.unwrap();
        }
    }

    #[test]
    fn a_slice_is_not_renewed_by_asking_again() {
        let mut queue = queue(2);
        queue.wake(A);
        queue.wake(B);
        assert_eq!(queue.next(Nanos(0)), (Some(A), Some(SLICE)));
        assert_eq!(queue.next(Nanos(7)), (Some(A), Some(SLICE)));
        assert_eq!(queue.next(SLICE), (Some(B), Some(SLICE + SLICE)));
    }

    #[test]
    fn a_woken_vcpu_runs_at_once_if_the_other_has_had_its_slice() {
        let mut queue = queue(2);
        queue.wake(A);
        queue.next(Nanos(0));
        assert!(queue.wake(B), "the CPU must learn that the slice now has an end");
        let late = SLICE + Nanos(1);
        assert_eq!(queue.next(late), (Some(B), Some(late + SLICE)));
    }

    #[test]
    fn yielding_lets_the_others_go_first() {
        let mut queue = queue(2);
        queue.wake(A);
        queue.wake(B);
        queue.next(Nanos(0));
        queue.yield_now();
        assert_eq!(queue.next(Nanos(1)).0, Some(B));
        assert_eq!(queue.next(Nanos(2)).0, Some(B));
        queue.block(A);
        queue.yield_now();
        assert_eq!(queue.next(Nanos(3)), (Some(B), None));
    }

    #[test]
    fn a_blocked_or_removed_vcpu_does_not_run() {
        let mut queue = queue(3);
        for vcpu in [A, B, C] {
            queue.wake(vcpu);
        }
        queue.next(Nanos(0));
        queue.block(A);
        queue.remove(B);
        assert!(!queue.wake(B));
        assert_eq!(queue.next(Nanos(1)), (Some(C), None));
        assert!(!queue.is_runnable(A) && queue.is_runnable(C));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Wake(u32),
        Block(u32),
        Remove(u32),
        Add(u32),
        Yield,
        Next(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let key = 0..6u32;
        let step = prop_oneof![
            4 => key.clone().prop_map(Step::Wake),
            2 => key.clone().prop_map(Step::Block),
            1 => key.clone().prop_map(Step::Remove),
            1 => key.prop_map(Step::Add),
            1 => Just(Step::Yield),
            4 => (0..12_000_000u64).prop_map(Step::Next),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn the_queue_agrees_with_a_deque(steps in steps()) {
            let mut queue = queue(6);
            let mut present = [true; 6];
            let mut waiting: VecDeque<u32> = VecDeque::new();
            let mut running: Option<(u32, Nanos, bool)> = None;
            let mut now = Nanos(0);
            for step in steps {
                match step {
                    Step::Wake(key) => {
                        let asleep = present[key as usize]
                            && !waiting.contains(&key)
                            && running.is_none_or(|(other, ..)| other != key);
                        prop_assert_eq!(queue.wake(VcpuKey(key)), asleep && waiting.is_empty());
                        if asleep {
                            waiting.push_back(key);
                        }
                    }
                    Step::Block(key) | Step::Remove(key) => {
                        waiting.retain(|&other| other != key);
                        running = running.filter(|&(other, ..)| other != key);
                        if let Step::Remove(_) = step {
                            present[key as usize] = false;
                            queue.remove(VcpuKey(key));
                        } else {
                            queue.block(VcpuKey(key));
                        }
                    }
                    Step::Add(key) => {
                        present[key as usize] = true;
                        queue.add(VcpuKey(key));
                    }
                    Step::Yield => {
                        running = running.map(|(key, since, _)| (key, since, true));
                        queue.yield_now();
                    }
                    Step::Next(later) => {
                        now += Nanos(later);
                        if let Some((key, since, yielded)) = running {
                            if !waiting.is_empty() && (yielded || since + SLICE <= now) {
                                waiting.push_back(key);
                                running = None;
                            } else {
                                running = Some((key, since, false));
                            }
                        }
                        running = running.or_else(|| waiting.pop_front().map(|key| (key, now, false)));
                        let end = running.filter(|_| !waiting.is_empty()).map(|(_, since, _)| since + SLICE);
                        prop_assert_eq!(queue.next(now), (running.map(|(key, ..)| VcpuKey(key)), end));
                    }
                }
                prop_assert_eq!(queue.current(), running.map(|(key, ..)| VcpuKey(key)));
            }
        }
    }
}
