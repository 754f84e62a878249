#!/bin/busybox sh
# Four domains at once: each writes 64 MiB to its disk and reads them again, and sends 16 MiB to each of the others.
. /scripts/domains
ends() { # how many have come to their end
    [ "$(cat $(console 'four*') 2>/dev/null | grep -c '=== GUEST UP')" = $1 ]
}
before=$(free_memory)
for number in 1 2 3 4; do
    disk=phy:/dev/example$number
    # Two live on partitions, two in files.
    case $number in
    2 | 4)
        truncate -s 128M /root/example/four$number.img
        disk=file:/root/example/four$number.img
        ;;
    esac
    cat >/tmp/four$number.cfg <<END
name = "four$number"
type = "pvh"
kernel = "/root/example/vmlinuz"
ramdisk = "/root/example/initrd"
extra = "console=hvc0 quiet corten.modules=xen_blkfront,xen_netfront corten.start=guest_four corten.four=$number"
memory = 256
vcpus = 2
vif = [ "mac=00:16:3e:00:00:1$number,bridge=xenbr0" ]
disk = [ "$disk,xvda,w" ]
END
    works "xl create four$number" xl create /tmp/four$number.cfg
done
works "their work comes to its end" wait_for 500 ends 4
xl list
for number in 1 2 3 4; do
    cat $(console four$number)
done
none() { [ $(xl list | wc -l) = 2 ]; }
works "xl shutdown" xl shutdown -a -w
works "they are gone" wait_for 60 none
gives_back their $before
xl dmesg | tail -n 5
