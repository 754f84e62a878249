#!/bin/busybox sh
# What must hold with several CPUs. On the kernel's command line: corten.cpus=N, corten.seconds=S of load on all of them.
. /scripts/lib
for word in $(cat /proc/cmdline); do
    case $word in
    corten.cpus=*) cpus=${word#corten.cpus=} ;;
    corten.seconds=*) seconds=${word#corten.seconds=} ;;
    esac
done
check "CPUs" "$([ "$(nproc)" = "$cpus" ] && echo yes)" "nproc says $(nproc), not $cpus"

# Hundredths of seconds that a process has run, by the clock: /proc/stat counts ticks, which are lost where an emulated CPU is kept from
# running for longer than one. Then those that a CPU did not have from the hypervisor, and those since boot.
ran() { awk '{ print $14 + $15 }' /proc/$1/stat; }
stolen() { awk -v cpu="cpu$1" '$1 == cpu { print $9 }' /proc/stat; }
now() { awk '{ print int($1 * 100) }' /proc/uptime; }

load() {
    cpu=0
    while [ $cpu -lt "$cpus" ]; do
        eval "before$cpu=$(stolen $cpu)"
        taskset -c $cpu sh -c 'while :; do :; done' &
        eval "worker$cpu=$!"
        cpu=$((cpu + 1))
    done
    # Meanwhile time goes on as it should, on whichever CPU.
    start=$(now) rounds=0
    while [ $rounds -lt $((seconds * 2)) ]; do
        sleep 0.5
        rounds=$((rounds + 1))
    done
    took=$(($(now) - start))
    check "sleeping beside the load" "$([ $took -ge $((seconds * 100)) ] && [ $took -le $((seconds * 125)) ] && echo yes)" \
        "$seconds s in steps of a half took $took hundredths"
    cpu=0
    while [ $cpu -lt "$cpus" ]; do
        eval "ran=\$(ran \$worker$cpu) stolen=\$((\$(stolen $cpu) - before$cpu))"
        check "CPU $cpu worked" "$([ $ran -ge $((took * 8 / 10)) ] && echo yes)" "$ran of $took hundredths"
        check "CPU $cpu was there" "$([ $stolen -le $((took / 10)) ] && echo yes)" "not for $stolen of $took hundredths"
        cpu=$((cpu + 1))
    done
    kill $(jobs -p) 2>/dev/null
    wait 2>/dev/null
}
[ "$seconds" -gt 0 ] && load

round=0
while [ $round -lt 3 ]; do
    cpu=1
    while [ $cpu -lt "$cpus" ]; do
        echo 0 >/sys/devices/system/cpu/cpu$cpu/online
        check "CPU $cpu goes" "$([ "$(nproc)" = $((cpus - 1)) ] && echo yes)" "nproc says $(nproc)"
        echo 1 >/sys/devices/system/cpu/cpu$cpu/online
        check "CPU $cpu comes" "$([ "$(nproc)" = "$cpus" ] && echo yes)" "nproc says $(nproc)"
        check "CPU $cpu works again" "$([ "$(taskset -c $cpu echo works)" = works ] && echo yes)" "nothing runs there"
        cpu=$((cpu + 1))
    done
    round=$((round + 1))
done

dmesg | grep -v 'Speculative Return Stack Overflow: WARNING:' >/tmp/dmesg
for word in WARNING: BUG: 'Call Trace' 'cut here' Oops 'soft lockup' 'self-detected stall' 'detected stalls' 'stall on CPU'; do
    check "kernel log: no $word" "$(grep -q "$word" /tmp/dmesg || echo yes)" "$(grep -m 1 "$word" /tmp/dmesg)"
done
cat /proc/interrupts
