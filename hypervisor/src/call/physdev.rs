//! PHYSDEVOP: what Dom0 tells of the physical devices. Interrupts of an HVM-type Dom0 are native, so nothing here deals in pirqs.

use xen_abi::errno::Errno;
use xen_abi::physdev::*;

use crate::hypercall::{Arguments, Caller};
use crate::machine::{DeviceRequest, Machine, PciFunction};

pub fn op<M: Machine>(caller: &mut Caller<'_, M>, arguments: Arguments) -> Result<u64, Errno> {
    let [command, argument, ..] = arguments;
    if !caller.domain.is_control() {
        return Err(Errno::ENOSYS);
    }
    let request = match command as u32 {
        PHYSDEVOP_PCI_DEVICE_ADD => {
            let add = caller.read(caller.handle::<PciDeviceAdd>(argument))?;
            DeviceRequest::PciAdd(PciFunction { segment: add.seg, bus: add.bus, devfn: add.devfn })
        }
        PHYSDEVOP_PCI_DEVICE_REMOVE => {
            DeviceRequest::PciRemove(function(caller.read(caller.handle::<PciDevice>(argument))?))
        }
        PHYSDEVOP_PCI_DEVICE_RESET => {
            let reset = caller.read(caller.handle::<PciDeviceReset>(argument))?;
            if reset.flags & !PCI_DEVICE_RESET_MASK != 0 {
                return Err(Errno::EINVAL);
            }
            DeviceRequest::PciReset(function(reset.dev))
        }
        PHYSDEVOP_PCI_MMCFG_RESERVED => {
            let window = caller.read(caller.handle::<PciMmcfgReserved>(argument))?;
            if window.flags & !XEN_PCI_MMCFG_RESERVED != 0 || window.end_bus < window.start_bus {
                return Err(Errno::EINVAL);
            }
            DeviceRequest::Ecam {
                base: window.address,
                segment: window.segment,
                first_bus: window.start_bus,
                last_bus: window.end_bus,
            }
        }
        PHYSDEVOP_SETUP_GSI => {
            let setup = caller.read(caller.handle::<SetupGsi>(argument))?;
            let gsi = u32::try_from(setup.gsi).map_err(|_| Errno::EINVAL)?;
            DeviceRequest::SetupGsi { gsi, level: setup.triggering != 0, active_low: setup.polarity != 0 }
        }
        _ => return Err(Errno::ENOSYS),
    };
    caller.system.machine.device(caller.domain, request).map(|()| 0)
}

fn function(device: PciDevice) -> PciFunction {
    PciFunction { segment: device.seg, bus: device.bus, devfn: device.devfn }
}
