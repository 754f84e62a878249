#!/bin/busybox sh
# Debian's `xl` makes the example domain, looks at it, and ends it in its ways: nothing of it is left.
. /scripts/lib
console=/var/log/xen/console/guest-example.log
wait_for() { # seconds, command
    left=$1
    shift
    until "$@"; do
        [ $left -gt 0 ] || return 1
        sleep 1
        left=$((left - 1))
    done
}
ups() { [ "$(grep -c '=== GUEST UP' $console 2>/dev/null)" = $1 ]; }
is_gone() { ! xl domid example >/dev/null 2>&1; }
free_memory() { xl info | awk '/^free_memory/ { print $3 }'; }

works() { # name, command
    name=$1
    shift
    check "$name" "$("$@" >/tmp/said 2>&1 && echo yes)" "$(tail -n 5 /tmp/said)"
}

xl info
xl list
before=$(free_memory)
works "xl create" xl create /root/example.cfg
works "its guest comes up" wait_for 240 ups 1
cat $console
xl list
xl vcpu-list
works "xl pause" xl pause example
works "xl unpause" xl unpause example
works "xl shutdown" xl shutdown -w example
works "it is gone" wait_for 30 is_gone
works "xl create again" xl create /root/example.cfg
works "xl destroy" xl destroy example
works "it is gone" wait_for 30 is_gone
sleep 1
after=$(free_memory)
check "its memory is free" "$([ "$before" = "$after" ] && echo yes)" "$before MiB before, $after MiB after"
xl dmesg | tail -n 5
