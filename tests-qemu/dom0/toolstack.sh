# Brings Debian's Xen toolstack up in Dom0: its modules and daemons, the bridge, and the example domain's disk.
export PATH=/usr/sbin:/usr/bin:/bin
load xen_evtchn xen_gntdev xen_gntalloc xen_privcmd xenfs xen_blkback xen_netback bridge tun loop ext4 ahci nvme ata_piix sd_mod
mount -t tmpfs run /run
mkdir -p /run/lock /run/xen /run/xenstored
# The hotplug scripts lock by these.
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
[ -e /proc/xen/capabilities ] || mount -t xenfs xenfs /proc/xen
hostname dom0
ifconfig lo 127.0.0.1
ip link add xenbr0 type bridge
ip address add 10.0.0.1/24 dev xenbr0
ip link set xenbr0 up
# The disk is the one with our label, wherever it is.
tries=0
until disk=$(findfs LABEL=corten-example 2>/dev/null) || [ $tries -ge 10 ]; do sleep 1; tries=$((tries + 1)); done
if [ -n "$disk" ]; then
    mount -t ext4 $disk /root/example
    # The other partitions are disks of domains.
    for partition in ${disk%2}[134]; do ln -s $partition /dev/example${partition#${disk%2}}; done
    ln -s example1 /dev/example
else
    echo "no disk for the example domain"
fi
bin=$(/usr/lib/xen-common/bin/xen-dir)/bin
$bin/xenstored --pid-file /run/xen/xenstored.pid
tries=0
until $bin/xenstore-control check >/dev/null 2>&1 || xenstore-exists / 2>/dev/null || [ $tries -ge 10 ]; do sleep 1; tries=$((tries + 1)); done
$bin/xen-init-dom0
$bin/xenconsoled --pid-file /run/xen/xenconsoled.pid --log=guest
echo "=== TOOLSTACK UP ==="
