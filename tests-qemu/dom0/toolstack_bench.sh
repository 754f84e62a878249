#!/usr/bin/bash
# What the example domain takes, by Dom0's clock: from `xl create` to where it may run, from there to its /init, and beside its own memory.
# Three rounds, each of `BENCH create MILLISECONDS`, `BENCH init MILLISECONDS`, `BENCH overhead PAGES`.
log=/var/log/xen/console/guest-example.log
now() { ms=${EPOCHREALTIME/./}; ms=$((ms / 1000)); }
# Pages that are neither free nor any domain's.
others() { dom0_memory | awk '/^FREE/ { sum += $2 } /^DOMAIN/ { sum += $3 } END { print -sum }'; }
# Nothing is started while the guest runs: this waits by itself.
exec 3<> <(:)
for round in 1 2 3; do
    rm -f $log
    sleep 2
    before=$(others)
    now
    start=$ms
    xl create -p /root/example.cfg || break
    now
    echo "BENCH create $((ms - start))"
    xl unpause example
    now
    start=$ms tries=0
    until [[ -f $log && $(<$log) == *'=== DOM0 INIT REACHED ==='* || $tries -ge 2400 ]]; do
        read -t 0.05 -u 3
        tries=$((tries + 1))
    done
    now
    echo "BENCH init $((ms - start))"
    sleep 2
    echo "BENCH overhead $(($(others) - before))"
    dom0_memory
    xl destroy example
    until ! xl domid example >/dev/null 2>&1; do sleep 1; done
done
