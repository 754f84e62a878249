#!/bin/busybox sh
# As many domains at once as corten.guests=N says, four at most: each writes 64 MiB to its disk and reads them again, and sends 16 MiB to each of the others.
. /scripts/domains
for word in $(cat /proc/cmdline); do
    case $word in corten.guests=*) guests=${word#*=} ;; esac
done
ends() { # how many have come to their end
    [ "$(cat $(console 'peer*') 2>/dev/null | grep -c '=== GUEST UP')" = $1 ]
}
before=$(idle_pages)
for number in $(seq $guests); do
    disk=phy:/dev/example$number
    # Two live on partitions, two in files.
    case $number in
    2 | 4)
        truncate -s 128M /root/example/peer$number.img
        disk=file:/root/example/peer$number.img
        ;;
    esac
    cat >/tmp/peer$number.cfg <<END
name = "peer$number"
type = "pvh"
kernel = "/root/example/vmlinuz"
ramdisk = "/root/example/initrd"
extra = "console=hvc0 quiet corten.modules=xen_blkfront,xen_netfront corten.start=guest_peer corten.peer=$number corten.peers=$guests"
memory = 256
vcpus = 2
vif = [ "mac=00:16:3e:00:00:1$number,bridge=xenbr0" ]
disk = [ "$disk,xvda,w" ]
END
    works "xl create peer$number" xl create /tmp/peer$number.cfg
done
works "their work comes to its end" wait_for 1500 ends $guests
xl list
for number in $(seq $guests); do
    cat $(console peer$number)
done
none() { [ $(xl list | wc -l) = 2 ]; }
works "xl shutdown" xl shutdown -a -w
works "they are gone" wait_for 60 none
gives_back their idle_pages $before
xl dmesg | tail -n 5
