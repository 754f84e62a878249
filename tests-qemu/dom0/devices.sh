#!/bin/busybox sh
# Every disk and network card at once. Each disk gets 64 MiB of its own and gives them back; through each card 16 MiB come from the
# host, and go back to it, where they are compared. On the command line: corten.net=DRIVER:NETWORK:FROM:TO,…, where NETWORK is the
# first three bytes of its addresses (the host is .2), and FROM and TO are the host's TCP ports.
. /scripts/lib

# 1 MiB without repetition, behind a line that says whose it is.
seq -w 1000000 9999999 | head -c 1048544 >/tmp/block
data() { # name
    for at in $(seq 10 73); do
        printf '%-31s\n' "$1, MiB $at"
        cat /tmp/block
    done
}

disk() { # name, device
    want=$(data $1 | tee /dev/$2 | md5sum)
    sync
    blockdev --flushbufs /dev/$2
    got=$(head -c 67108864 /dev/$2 | md5sum)
    check "disk $1: 64 MiB come back" "$([ "$got" = "$want" ] && echo yes)" "$got, not $want"
}

net() { # driver, network, port from, port to
    card=
    for found in /sys/class/net/*; do
        case $(readlink -f $found/device/driver) in */$1) card=${found##*/} ;; esac
    done
    check "net $1: there" "$([ -n "$card" ] && echo yes)" "$(ls /sys/class/net)"
    ifconfig $card $2.15 netmask 255.255.255.0 up
    tries=0
    while [ "$(cat /sys/class/net/$card/carrier)" != 1 ] && [ $tries -lt 20 ]; do sleep 1; tries=$((tries + 1)); done
    nc $2.2 $3 </dev/null >/tmp/$1
    check "net $1: 16 MiB arrive" "$([ "$(stat -c %s /tmp/$1)" = 16777216 ] && echo yes)" "$(stat -c %s /tmp/$1)"
    nc $2.2 $4 </tmp/$1 >/tmp/$1.answer
    # The host's word on what it got.
    check "net $1: 16 MiB go back" "$([ "$(cat /tmp/$1.answer)" = equal ] && echo yes)" "$(cat /tmp/$1.answer)"
}

tries=0
while [ ! -b /dev/sda -o ! -b /dev/nvme0n1 -o ! -b /dev/vda ] && [ $tries -lt 30 ]; do sleep 1; tries=$((tries + 1)); done
disk ahci sda &
disk nvme nvme0n1 &
disk virtio vda &
for word in $(cat /proc/cmdline); do
    case $word in
    corten.net=*)
        for card in $(echo "${word#corten.net=}" | tr , ' '); do
            net $(echo $card | tr : ' ') &
        done
        ;;
    esac
done
wait

cat /proc/interrupts
interrupts() { # name, kind, what the line says
    lines=$(grep -E "$3" /proc/interrupts)
    counts=$(echo "$lines" | awk -v kind="$2" 'index($0, kind) { for (i = 2; i <= NF && $i ~ /^[0-9]+$/; i++) n += $i } END { print n + 0 }')
    check "interrupts $1: by $2" "$([ "$counts" -gt 10 ] && echo yes)" "$lines"
}
if grep -q pci=nomsi /proc/cmdline; then
    # By lines, which more than one device is on.
    interrupts ahci IO-APIC 'fasteoi.*ahci'
    interrupts nvme IO-APIC 'fasteoi.*nvme0q'
    interrupts virtio IO-APIC 'fasteoi.*virtio[0-9]'
    interrupts e1000e IO-APIC 'fasteoi.*eth[0-9]'
else
    # By messages: AHCI by MSI, the others by MSI-X (kernels before 6.2 do not say which of the two).
    msix=PCI-MSI
    grep -q PCI-MSIX /proc/interrupts && msix=PCI-MSIX
    interrupts ahci PCI-MSI 'ahci'
    interrupts nvme $msix 'nvme0q[1-9]'
    interrupts virtio_blk $msix 'virtio[0-9]+-req'
    interrupts virtio_net $msix 'virtio[0-9]+-(in|out)put'
    interrupts e1000e $msix 'eth[0-9]-(rx|tx)'
fi

for word in WARNING: BUG: 'Call Trace' 'I/O error' 'NETDEV WATCHDOG' 'failed command' 'timeout, ' 'irq .*nobody cared' 'BAR .*(failed|no space)'; do
    check "kernel log: no $word" "$(dmesg | grep -v 'Speculative Return Stack Overflow: WARNING:' | grep -qE "$word" || echo yes)" \
        "$(dmesg | grep -E -m 1 "$word")"
done
