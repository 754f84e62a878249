//! No path may cost more than it costs in Xen.

use super::case::{Case, nothing_to_prepare};
use crate::bench;
use crate::engine::Engine;

pub fn case() -> Case {
    Case {
        name: "costs".into(),
        about: "no path costs more than in Xen (`cargo xtask bench paths` shows them)",
        quick: true,
        on_xen: false,
        in_one_version: false,
        // Bochs counts instructions; elsewhere the TSC is time.
        engines: |engine| matches!(engine, Engine::Bochs(_)),
        prepare: nothing_to_prepare(),
        run: Box::new(|context| bench::none_above_xen(context.engine, context.hypervisor, &context.logs)),
    }
}
