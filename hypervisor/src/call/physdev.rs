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

#[cfg(test)]
mod tests {
    use xen_abi::numbers::PHYSDEV_OP;

    use super::*;
    use crate::fake::{self, Running, Told};

    fn dom0() -> Running {
        let system = fake::system(256);
        Running::new(system, &fake::add_domain(system, 0, 16))
    }

    #[test]
    fn what_dom0_says_of_devices_reaches_the_machine() {
        let mut dom0 = dom0();
        let function = PciFunction { segment: 1, bus: 2, devfn: 3 };
        let device = PciDevice { seg: 1, bus: 2, devfn: 3 };
        let mut add = PciDeviceAdd { seg: 1, bus: 2, devfn: 3, ..Default::default() };
        assert_eq!(dom0.op(PHYSDEV_OP, PHYSDEVOP_PCI_DEVICE_ADD, &mut add), 0);
        assert_eq!(dom0.op(PHYSDEV_OP, PHYSDEVOP_PCI_DEVICE_REMOVE, &mut { device }), 0);
        let mut reset = PciDeviceReset { dev: device, flags: 1 };
        assert_eq!(dom0.op(PHYSDEV_OP, PHYSDEVOP_PCI_DEVICE_RESET, &mut reset), 0);
        let mut window = PciMmcfgReserved { address: 0xe000_0000, segment: 1, start_bus: 0, end_bus: 255, flags: 1 };
        assert_eq!(dom0.op(PHYSDEV_OP, PHYSDEVOP_PCI_MMCFG_RESERVED, &mut window), 0);
        let mut setup = SetupGsi { gsi: 9, triggering: 1, polarity: 1, ..Default::default() };
        assert_eq!(dom0.op(PHYSDEV_OP, PHYSDEVOP_SETUP_GSI, &mut setup), 0);
        let told: Vec<DeviceRequest> = dom0
            .system
            .machine
            .told()
            .into_iter()
            .map(|told| match told {
                Told::Device(request) => request,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            told,
            [
                DeviceRequest::PciAdd(function),
                DeviceRequest::PciRemove(function),
                DeviceRequest::PciReset(function),
                DeviceRequest::Ecam { base: 0xe000_0000, segment: 1, first_bus: 0, last_bus: 255 },
                DeviceRequest::SetupGsi { gsi: 9, level: true, active_low: true },
            ]
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let mut dom0 = dom0();
        let mut reset = PciDeviceReset { flags: u32::MAX, ..Default::default() };
        assert_eq!(dom0.op(PHYSDEV_OP, PHYSDEVOP_PCI_DEVICE_RESET, &mut reset), Errno::EINVAL.as_return());
        let window = PciMmcfgReserved { start_bus: 9, end_bus: 8, ..Default::default() };
        for mut window in [window, PciMmcfgReserved { flags: 2, ..Default::default() }] {
            assert_eq!(dom0.op(PHYSDEV_OP, PHYSDEVOP_PCI_MMCFG_RESERVED, &mut window), Errno::EINVAL.as_return());
        }
        let mut setup = SetupGsi { gsi: -1, ..Default::default() };
        assert_eq!(dom0.op(PHYSDEV_OP, PHYSDEVOP_SETUP_GSI, &mut setup), Errno::EINVAL.as_return());
        assert_eq!(dom0.call(PHYSDEV_OP, &[PHYSDEVOP_PCI_DEVICE_ADD.into(), 0xdead_0000]).0, Errno::EFAULT.as_return());
        assert!(dom0.system.machine.told().is_empty());
    }

    #[test]
    fn physical_interrupts_are_nobodys_and_devices_not_a_guests() {
        let mut dom0 = dom0();
        let mut guest = Running::new(dom0.system, &fake::add_domain(dom0.system, 5, 16));
        for operation in [PHYSDEVOP_MAP_PIRQ, PHYSDEVOP_UNMAP_PIRQ, PHYSDEVOP_EOI, 99] {
            assert_eq!(dom0.call(PHYSDEV_OP, &[operation.into(), 0]).0, Errno::ENOSYS.as_return());
        }
        for operation in [PHYSDEVOP_PCI_DEVICE_ADD, PHYSDEVOP_SETUP_GSI, 99] {
            assert_eq!(guest.call(PHYSDEV_OP, &[operation.into(), 0]).0, Errno::ENOSYS.as_return());
        }
    }
}
