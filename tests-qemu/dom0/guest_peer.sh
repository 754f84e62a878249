# One of corten.peers=N domains that work beside one another: corten.peer=N says which.
. /scripts/lib
for word in $(cat /proc/cmdline); do
    case $word in
    corten.peer=*) own=${word#*=} ;;
    corten.peers=*) peers=${word#*=} ;;
    esac
done
others=$(seq $peers | grep -v $own)
# 1 MiB without repetition, behind a line that says whose it is.
seq -w 1000000 9999999 | head -c 1048544 >/tmp/block
data() { # MiB
    for at in $(seq $1); do
        printf '%-31s\n' "guest $own, MiB $at"
        cat /tmp/block
    done
}
tries=0
until [ -b /dev/xvda -a -d /sys/class/net/eth0 ] || [ $tries -ge 20 ]; do sleep 1; tries=$((tries + 1)); done
ifconfig eth0 10.0.0.1$own netmask 255.255.255.0 up
# Whoever sends here is told the sum of what arrived.
for from in $others; do
    nc -l -p 500$from -e md5sum &
done

want=$(data 64 | tee /dev/xvda | md5sum)
sync
blockdev --flushbufs /dev/xvda
got=$(head -c 67108864 /dev/xvda | md5sum)
check "guest $own: 64 MiB come back from the disk" "$([ "$got" = "$want" ] && echo yes)" "$got, not $want"

data 16 >/tmp/data
sum=$(md5sum </tmp/data)
give() { # to whom
    answer= tries=0
    until [ -n "$answer" ] || [ $tries -ge 120 ]; do
        # Until the other has come so far there is nobody to take it.
        answer=$(nc 10.0.0.1$1 500$own </tmp/data 2>/dev/null) || sleep 1
        tries=$((tries + 1))
    done
    check "guest $own: 16 MiB reach guest $1" "$([ "$answer" = "$sum" ] && echo yes)" "$answer, not $sum"
}
for to in $others; do
    give $to &
done
wait
echo "=== GUEST UP ==="
