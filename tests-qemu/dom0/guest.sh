# What a domain got from the toolstack, beside what its command line says that it is to get: corten.cpus=N, corten.memory=MIB,
# corten.disks=A,B (256 MiB each), corten.net=OWN,PEER (addresses).
. /scripts/lib
for word in $(cat /proc/cmdline); do
    case $word in
    corten.cpus=*)
        check "CPUs" "$([ "$(nproc)" = "${word#*=}" ] && echo yes)" "$(nproc)"
        ;;
    corten.memory=*)
        # The kernel keeps some of it.
        total=$(awk '/^MemTotal/ { print int($2 / 1024) }' /proc/meminfo)
        check "memory" "$([ $total -le ${word#*=} -a $total -ge $((${word#*=} * 3 / 4)) ] && echo yes)" "$total MiB"
        ;;
    corten.disks=*)
        for disk in $(echo ${word#*=} | tr , ' '); do
            tries=0
            until [ -b /dev/$disk ] || [ $tries -ge 10 ]; do sleep 1; tries=$((tries + 1)); done
            check "disk $disk: 256 MiB" "$([ "$(cat /sys/block/$disk/size)" = 524288 ] && echo yes)" "$(ls /sys/block)"
            want=$(seq -w 1000000 9999999 | head -c 1048576 | tee /dev/$disk | md5sum)
            sync
            blockdev --flushbufs /dev/$disk
            got=$(head -c 1048576 /dev/$disk | md5sum)
            check "disk $disk: 1 MiB comes back" "$([ "$got" = "$want" ] && echo yes)" "$got, not $want"
        done
        ;;
    corten.net=*)
        own=${word#*=}
        ifconfig eth0 ${own%,*} netmask 255.255.255.0 up
        check "network: the peer answers" "$(ping -c 3 -i 0.5 -w 20 ${own#*,} >/tmp/ping && echo yes)" "$(tail -n 3 /tmp/ping)"
        ;;
    esac
done
echo "=== GUEST UP ==="
