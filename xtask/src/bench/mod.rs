//! `cargo xtask bench`: what Corten costs, beside Xen and the budget.

mod boot;
mod costs;
mod guest;
mod paths;
mod plot;
mod sched;

pub use boot::command as boot;
pub use guest::command as guest;
pub use paths::command as paths;
pub use paths::none_above_xen;
pub use sched::command as sched;
