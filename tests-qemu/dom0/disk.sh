#!/bin/busybox sh
# An ext4 file system on the machine's first disk. The first boot writes 8 MiB and reboots; the second reads them again.
. /scripts/lib
tries=0
while [ ! -b /dev/sda ] && [ $tries -lt 30 ]; do sleep 1; tries=$((tries + 1)); done
mount -t ext4 /dev/sda /mnt
mounted=$(grep -q ' /mnt ext4' /proc/mounts && echo yes)
check "ext4 mounts" "$mounted" "$(cat /proc/partitions)"
[ "$mounted" = yes ] || exit 1
if [ ! -f /mnt/sum ]; then
    # Different in each block, the same on every run.
    seq -w 1000000 9999999 | head -c 8388608 >/tmp/data
    cp /tmp/data /mnt/data
    md5sum </tmp/data >/mnt/sum
    umount /mnt
    echo "=== DOM0 REBOOTS ==="
    sync
    reboot -f
fi
check "size after a reboot" "$([ "$(stat -c %s /mnt/data)" = 8388608 ] && echo yes)" "$(stat -c %s /mnt/data)"
check "checksum after a reboot" "$([ "$(md5sum </mnt/data)" = "$(cat /mnt/sum)" ] && echo yes)" "$(md5sum </mnt/data)"
umount /mnt
check "no error in the kernel log" "$(dmesg | grep -qE 'I/O error|EXT4-fs error|ata.*(failed|timeout)' || echo yes)" \
    "$(dmesg | grep -E 'I/O error|EXT4-fs error|ata.*(failed|timeout)' | head -n 1)"
grep -E 'ata|IO-APIC' /proc/interrupts
