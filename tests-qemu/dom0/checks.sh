#!/bin/busybox sh
# What must hold in Dom0 once it is up. Lines `CHECK name ok` or `CHECK name FAIL: why`.
. /scripts/lib
has() { grep -q "$1" "$2" && echo yes || echo no; }

type=$(cat /sys/hypervisor/type)
check "hypervisor type" "$([ "$type" = xen ] && echo yes)" "$type"
version=$(cat /sys/hypervisor/version/major).$(cat /sys/hypervisor/version/minor)$(cat /sys/hypervisor/version/extra)
check "hypervisor version" "$(case $version in 4.20*) echo yes ;; esac)" "$version"
check "guest type" "$([ "$(cat /sys/hypervisor/guest_type)" = PVH ] && echo yes)" "$(cat /sys/hypervisor/guest_type)"

# Corten's own are the firmware's services, if there are any: the kernel goes without.
check "no EFI runtime services" "$([ ! -d /sys/firmware/efi ] && echo yes)" "$(ls /sys/firmware/efi)"

cp /proc/interrupts /tmp/before
sleep 1
cp /proc/interrupts /tmp/after
for word in xen-percpu xen-dyn IO-APIC; do
    check "interrupts: $word" "$(has $word /tmp/after)" "no such line in /proc/interrupts"
done
count() { awk '$1 == "HYP:" { print $2 }' "$1"; }
check "interrupts: HYP counts" "$([ "$(count /tmp/after)" -gt "$(count /tmp/before)" ] && echo yes)" \
    "$(count /tmp/before) then $(count /tmp/after)"

# What the kernel says of the CPU model's own flaws is no fault of the hypervisor's.
dmesg | grep -v 'Speculative Return Stack Overflow: WARNING:' >/tmp/dmesg
# A CPU that does not claim a constant TSC makes the kernel distrust it as soon as there are two.
grep -q constant_tsc /proc/cpuinfo || sed -i '/TSCs unsynchronized/d' /tmp/dmesg
for word in WARNING: BUG: 'Call Trace' 'unchecked MSR' 'cut here' Oops 'general protection' 'soft lockup' 'TSC unstable'; do
    check "kernel log: no $word" "$(grep -q "$word" /tmp/dmesg || echo yes)" "$(grep -m 1 "$word" /tmp/dmesg)"
done
clock=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
check "clock source" "$(case $clock in xen | tsc) echo yes ;; esac)" "$clock"
cat /proc/interrupts
grep -E 'tsc:|Booting paravirtualized|Xen' /tmp/dmesg

# Ten seconds by the kernel's clock; how many ticks of the TSC they took is judged outside.
/bin/dom0_sleep
