//! EVTCHNOP: event channels (Xen's `event_channel.h`). What each operation refuses, and how, is said in [`crate::event::bind`].

use mm::addr::Gfn;
use xen_abi::errno::Errno;
use xen_abi::event::*;
use xen_abi::handle::GuestHandle;
use xen_abi::types::{DomainId, VcpuId};

use crate::area::Area;
use crate::domain::Domain;
use crate::event::{self, Binding, Party, Target, bind, channels};
use crate::hypercall::{Arguments, Caller, Outcome};
use crate::machine::Machine;
use crate::vcpu::hold;

/// Ports that a reset looks at before the guest, and its interrupts, get a turn.
const RESET_BUDGET: u32 = 256;

pub fn op<M: Machine>(caller: &mut Caller<'_, M>, arguments: Arguments) -> Result<Outcome, Errno> {
    let [command, argument, ..] = arguments;
    let (system, domain) = (caller.system, caller.domain);
    let me = Target::new(system, domain);
    match command as u32 {
        EVTCHNOP_SEND => {
            let port = caller.read(caller.handle::<Send>(argument))?.port;
            event::send(system, domain, port)?;
        }
        EVTCHNOP_UNMASK => {
            let port = caller.read(caller.handle::<Unmask>(argument))?.port;
            channels::unmask(&me, port)?;
        }
        EVTCHNOP_ALLOC_UNBOUND => {
            let (handle, mut request) = fetch::<M, AllocUnbound>(caller, argument)?;
            let target = caller.target(request.dom)?;
            let remote = if request.remote_dom == DomainId::SELF { domain.id } else { request.remote_dom };
            request.port = bind::alloc_unbound(&Target::new(system, &target), remote)?;
            return answer(caller, handle, &request, &target, request.port);
        }
        EVTCHNOP_BIND_INTERDOMAIN => {
            let (handle, mut request) = fetch::<M, BindInterdomain>(caller, argument)?;
            request.local_port = if request.remote_dom == DomainId::SELF || request.remote_dom == domain.id {
                bind::bind_interdomain(&me, &me, request.remote_port)?
            } else {
                // Anyone may try: the remote port says whom it waits for.
                let remote = system.domain(request.remote_dom).ok_or(Errno::ESRCH)?;
                bind::bind_interdomain(&me, &Target::new(system, &remote), request.remote_port)?
            };
            return answer(caller, handle, &request, domain, request.local_port);
        }
        EVTCHNOP_BIND_VIRQ => {
            let (handle, mut request) = fetch::<M, BindVirq>(caller, argument)?;
            request.port = bind::bind_virq(&me, request.virq, VcpuId(request.vcpu))?;
            return answer(caller, handle, &request, domain, request.port);
        }
        EVTCHNOP_BIND_IPI => {
            let (handle, mut request) = fetch::<M, BindIpi>(caller, argument)?;
            request.port = bind::bind_ipi(&me, VcpuId(request.vcpu))?;
            return answer(caller, handle, &request, domain, request.port);
        }
        // Physical interrupts reach an HVM-type domain by its virtual IO-APIC and by MSI; it has no pirqs (no XENFEAT_hvm_pirqs).
        EVTCHNOP_BIND_PIRQ => {
            caller.read(caller.handle::<BindPirq>(argument))?;
            return Err(Errno::EINVAL);
        }
        EVTCHNOP_CLOSE => {
            let port = caller.read(caller.handle::<Close>(argument))?.port;
            bind::close(&me, port, Party::Guest, event::find(system))?;
        }
        EVTCHNOP_STATUS => {
            let (handle, request) = fetch::<M, Status>(caller, argument)?;
            let target = caller.target(request.dom)?;
            let answer = status(&target, request)?;
            caller.write(handle, &answer)?;
        }
        EVTCHNOP_BIND_VCPU => {
            let request = caller.read(caller.handle::<BindVcpu>(argument))?;
            bind::bind_vcpu(&me, request.port, VcpuId(request.vcpu))?;
        }
        EVTCHNOP_RESET => {
            let request = caller.read(caller.handle::<Reset>(argument))?;
            let target = caller.target(request.dom)?;
            // Another domain must stand still, as its vCPUs could open what was just closed.
            if target.id != domain.id && target.vcpus.iter().any(|vcpu| vcpu.holds() & hold::FROM_OUTSIDE == 0) {
                return Err(Errno::EBUSY);
            }
            if !bind::reset(&Target::new(system, &target), Party::Guest, RESET_BUDGET, event::find(system)) {
                return Ok(Outcome::Continue(arguments));
            }
        }
        EVTCHNOP_INIT_CONTROL => {
            let (handle, mut request) = fetch::<M, InitControl>(caller, argument)?;
            init_control(caller, &request)?;
            request.link_bits = EVTCHN_FIFO_LINK_BITS as u8;
            caller.write(handle, &request)?;
        }
        EVTCHNOP_EXPAND_ARRAY => {
            let gfn = Gfn(caller.read(caller.handle::<ExpandArray>(argument))?.array_gfn);
            bind::expand_array(&me, caller.share(gfn)?)?;
        }
        EVTCHNOP_SET_PRIORITY => {
            let request = caller.read(caller.handle::<SetPriority>(argument))?;
            bind::set_priority(&me, request.port, request.priority)?;
        }
        _ => return Err(Errno::ENOSYS),
    }
    Ok(Outcome::Return(0))
}

/// The argument, and where an answer goes.
fn fetch<M: Machine, T>(caller: &mut Caller<'_, M>, argument: u64) -> Result<(GuestHandle<T>, T), Errno>
where
    T: zerocopy::FromBytes + zerocopy::IntoBytes,
{
    let handle = caller.handle::<T>(argument);
    Ok((handle, caller.read(handle)?))
}

/// Tells the caller which port it got. One that cannot be told does not get it.
fn answer<M: Machine, T>(
    caller: &mut Caller<'_, M>,
    handle: GuestHandle<T>,
    request: &T,
    owner: &Domain<M>,
    port: xen_abi::types::Port,
) -> Result<Outcome, Errno>
where
    T: zerocopy::IntoBytes + zerocopy::Immutable,
{
    let told = caller.write(handle, request);
    if told.is_err() {
        let system = caller.system;
        // Closed by another vCPU already: gone as well.
        let _ = bind::close(&Target::new(system, owner), port, Party::Guest, event::find(system));
    }
    told.map(|()| Outcome::Return(0))
}

/// EVTCHNOP_status. EACCES for a port of the hypervisor's, as in Xen.
fn status<M: Machine>(domain: &Domain<M>, request: Status) -> Result<Status, Errno> {
    let state = domain.events.state(request.port)?;
    if state.is_hypervisors() {
        return Err(Errno::EACCES);
    }
    let (status, value, remote_port) = match state.binding() {
        Binding::Free | Binding::Reserved => (EVTCHNSTAT_CLOSED, 0, 0),
        Binding::Unbound { remote } => (EVTCHNSTAT_UNBOUND, u32::from(remote.0), 0),
        Binding::Interdomain { remote, port } => (EVTCHNSTAT_INTERDOMAIN, u32::from(remote.0), port.0),
        Binding::Virq(virq) => (EVTCHNSTAT_VIRQ, virq, 0),
        Binding::Ipi => (EVTCHNSTAT_IPI, 0, 0),
    };
    Ok(Status { status, vcpu: state.vcpu().0, value, remote_port: xen_abi::types::Port(remote_port), ..request })
}

/// ENOENT for a vCPU that does not exist, EINVAL for a control block that is not aligned, leaves its page or is not in RAM.
fn init_control<M: Machine>(caller: &mut Caller<'_, M>, request: &InitControl) -> Result<(), Errno> {
    let vcpu = caller.domain.vcpu(VcpuId(request.vcpu)).ok_or(Errno::ENOENT)?.id;
    let offset = request.offset as usize;
    if !offset.is_multiple_of(8) || offset.saturating_add(event::CONTROL_SIZE) > mm::PAGE_SIZE {
        return Err(Errno::EINVAL);
    }
    let page = caller.share(Gfn(request.control_gfn))?;
    let block = Area::new(page, offset, event::CONTROL_SIZE).ok_or(Errno::EINVAL)?;
    bind::init_control(&Target::new(caller.system, caller.domain), vcpu, block)
}
