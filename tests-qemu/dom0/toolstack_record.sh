#!/bin/busybox sh
# What Debian's toolstack says, command by command: `>>> NAME: COMMAND`, what it prints, `<<< NAME STATUS`. The recordings that this is
# compared with were made by the same script.
dmesg -n 1
record() { # name, command
    name=$1
    shift
    timeout 200 "$@" </dev/null >/tmp/said 2>&1
    status=$?
    echo ">>> $name: $*"
    cat /tmp/said
    echo "<<< $name $status"
}
wait_for() { # seconds, what is said if it does not come, command
    left=$1 what=$2
    shift 2
    until "$@"; do
        [ $left -gt 0 ] || { echo "WAITED in vain: $what"; tail -n 5 /var/log/xen/xl-example.log; return; }
        sleep 1
        left=$((left - 1))
    done
}
# The same for a text of which the beginning will do.
record_start() { # name, lines, command
    name=$1 lines=$2
    shift 2
    timeout 200 "$@" </dev/null >/tmp/said 2>&1
    status=$?
    echo ">>> $name: $*"
    head -n $lines /tmp/said
    echo "<<< $name $status"
}
console=/var/log/xen/console/guest-example.log
guest_is_up() { [ "$(grep -c '=== GUEST UP' $console 2>/dev/null)" = $1 ]; }
memory_is() { [ "$(xl list $1 | awk 'NR == 2 { print $3 }')" = $2 ]; }
online_is() { [ "$(xl list example | awk 'NR == 2 { print $4 }')" = $1 ]; }
is_there() { xl domid $1 >/dev/null 2>&1; }
is_gone() { ! is_there $1; }
id_is() { [ "$(xl domid example 2>/dev/null)" = $1 ]; }
# At rest, both in its own eyes and in those of others.
is_idle() { xl list example | grep -q -- '-b----'; }
# A word to the guest's shell by `xl console`, which wants a terminal; Ctrl-] leaves once the shell has answered.
answered() { grep -q 'the answer is 42' /tmp/console; }
tell_guest() {
    rm -f /tmp/console
    {
        sleep 1
        echo "$1; echo the answer is \$((6 * 7))"
        wait_for 30 "the guest's shell answers" answered >&2
        printf '\035'
        sleep 1
    } | timeout 60 script -qfc 'xl console example' /tmp/console >/dev/null
}

record info xl info
record info-n xl info -n
record list-dom0 xl list
record vcpu-list-dom0 xl vcpu-list
record create xl create /root/example.cfg 'uuid="c0de0000-0000-4000-8000-000000000001"'
wait_for 200 "the guest is up" guest_is_up 1
wait_for 30 "the guest is idle" is_idle
record list xl list
record list-long xl list -l
record list-verbose xl list -v
record vcpu-list xl vcpu-list
record top xentop -b -i 2 -d 1
record cpupool-list xl cpupool-list
record claims xl claims
record vm-list xl vm-list
record block-list xl block-list example
record network-list xl network-list example
record domid xl domid example
record domname xl domname 1
record uptime xl uptime
record xenstore sh -c 'xenstore-ls -f | sort'

tell_guest true
record console grep -o 'the answer is 42' /tmp/console

record sched-credit2 xl sched-credit2
record sched-credit2-set xl sched-credit2 -d example -w 512 -c 50
record sched-credit2-is xl sched-credit2 -d example
xl sched-credit2 -d example -c 0
record sched-credit2-too-much xl sched-credit2 -d example -w 65536
record vcpu-pin xl vcpu-pin example 0 0
record vcpu-pin-soft xl vcpu-pin example 1 all 0
record vcpu-pin-is xl vcpu-list example
record vcpu-pin-nowhere xl vcpu-pin example 0 7
record vcpu-pin-all xl vcpu-pin example all all all
record vcpu-pin-all-is xl vcpu-list example
record vcpu-set xl vcpu-set example 1
wait_for 60 "one vCPU is left" online_is 1
record vcpu-set-is xl vcpu-list example
record vcpu-set-too-many xl vcpu-set --ignore-host example 3
# The machine has one CPU, and xl wants to be told that this is meant.
record vcpu-set-back xl vcpu-set --ignore-host example 2
# Debian's kernel leaves it to udev to bring it up.
tell_guest 'echo 1 >/sys/devices/system/cpu/cpu1/online'
wait_for 60 "two vCPUs are back" online_is 2
record mem-set xl mem-set example 200
wait_for 90 "200 MiB are left" memory_is example 200
record mem-set-is xl list example
record mem-set-back xl mem-set example 256
wait_for 90 "256 MiB are back" memory_is example 256
record mem-max xl mem-max example 300
record mem-max-is sh -c 'xl list -l example | grep max_memkb; xentop -b -i1 | grep example | cut -c 1-11,54-64'
# More than the target would have the next start of the guest populate on demand.
record mem-max-back xl mem-max example 256
record mem-set-too-much xl mem-set example 400
record mem-set-dom0 xl mem-set Domain-0 480
wait_for 90 "Dom0 has 480 MiB" memory_is Domain-0 480
record mem-set-dom0-is xl list Domain-0
record mem-set-dom0-back xl mem-set Domain-0 511
wait_for 90 "Dom0 has 511 MiB" memory_is Domain-0 511

record rename xl rename example renamed
record rename-is xl domid renamed
record rename-back xl rename renamed example
record pause xl pause example
record pause-is xl list example
record unpause xl unpause example
record nobody xl pause nobody
record debug-keys xl debug-keys q
record trigger xl trigger example nmi 0
record_start dmesg 3 xl dmesg
record_start dmesg-clear 3 xl dmesg -c
record dmesg-cleared xl dmesg

record reboot xl reboot example
wait_for 120 "the guest has another number" id_is 2
record reboot-is xl domid example
wait_for 200 "the guest is up again" guest_is_up 2
record shutdown xl shutdown -w example
wait_for 60 "the guest is gone" is_gone example
record shutdown-is xl list
record create-paused xl create -p /root/example.cfg 'uuid="c0de0000-0000-4000-8000-000000000001"'
record create-paused-is xl list
record destroy xl destroy example
wait_for 60 "the guest is gone" is_gone example
record destroy-is xl list
record xenstore-after sh -c 'xenstore-ls -f | sort'
record create-too-much xl create /root/example.cfg 'memory=60000' 'name="toobig"'
record create-too-much-is xl list
record xen-cpuid xen-cpuid
# Of what is not paravirtual.
record xen-cpuid-p sh -c "xen-cpuid -p 2>/dev/null | awk '/policy/ { skip = /^PV/ } !skip'"
