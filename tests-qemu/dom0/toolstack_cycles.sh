#!/bin/busybox sh
# Makes and ends the example domain as often as corten.cycles=N says, each time in another way: half of them are killed while they boot or
# are built. Then as many pages are free as before.
. /scripts/domains
ways=5
cycles=10
for word in $(cat /proc/cmdline); do
    case $word in corten.cycles=*) cycles=${word#*=} ;; esac
done
log=$(console example)
pause=0.1
is_up() { grep -q '=== GUEST UP' $log 2>/dev/null; }
has_linux() { grep -q 'Linux version' $log 2>/dev/null; }
has_disk() { grep -q 'blkfront: xvda' $log 2>/dev/null; }
is_there() { ! is_gone example; }
settle() { # Until no domain is being taken down.
    wait_for 300 is_gone example || return 1
    last=
    until [ "$last" = "$(free_pages)" ]; do
        last=$(free_pages)
        sleep 0.3
    done
}
make() { xl create /root/example.cfg "extra=\"console=hvc0 corten.modules=xen_blkfront,xen_netfront corten.start=guest corten.disks=xvda,xvdb corten.net=10.0.0.2,10.0.0.1 $1\""; }

cycle() { # its number
    : >$log
    case $(($1 % ways)) in
    0) # It boots, and shuts itself down.
        make "" || return 1
        wait_for 1200 is_up || return 1
        xl shutdown -w example
        ;;
    1) # Killed as its kernel starts.
        make "" || return 1
        wait_for 600 has_linux || return 1
        xl destroy example
        ;;
    2) # It boots, and is destroyed with its disks and its network card in use.
        make "" || return 1
        wait_for 1200 is_up || return 1
        xl destroy example
        ;;
    3) # Killed as it connects to its disks.
        make "" || return 1
        wait_for 600 has_disk || return 1
        xl destroy example
        ;;
    4) # Its maker is killed while it builds it, with pages of the domain mapped.
        make "" &
        wait_for 300 is_there
        sleep 0.$(($1 / ways * 3 % 10))
        kill -9 $!
        wait $! 2>/dev/null
        is_gone example || xl destroy example
        ;;
    esac
    settle
}

failed=
before=$(free_pages)
for number in $(seq $cycles); do
    if ! cycle $number >/tmp/said 2>&1; then
        failed="$failed $number"
        tail -n 5 /tmp/said $log
    fi
    echo "cycle $number: $(free_pages) pages free"
done
check "$cycles domains are made and ended" "$([ -z "$failed" ] && echo yes)" "failed:$failed"
after=$(free_pages)
check "as many pages are free as before" "$([ -n "$before" -a "$before" = "$after" ] && echo yes)" "$before before, $after after"
xl list
