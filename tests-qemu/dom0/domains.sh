# What scripts share that have `xl` make domains.
. /scripts/lib
pause=1 # second
wait_for() { # how many pauses at most, command
    left=$1
    shift
    until "$@"; do
        [ $left -gt 0 ] || return 1
        sleep $pause
        left=$((left - 1))
    done
}
console() { # domain
    echo /var/log/xen/console/guest-$1.log
}
ups() { # domain, how often its /init has come to its end
    [ "$(grep -c '=== GUEST UP' $(console $1) 2>/dev/null)" = $2 ]
}
is_gone() { # domain
    ! xl domid $1 >/dev/null 2>&1
}
free_memory() { xl info | awk '/^free_memory/ { print $3 }'; }
# Debug key m tells Corten's to the page: what is free, Corten's heap, and page tables.
accounts() {
    xl debug-keys m
    xl dmesg | sed -n 's/.* \([0-9]*\) KiB free of .* \([0-9]*\) KiB of heap, \([0-9]*\) KiB .* page tables.*/\1 \2 \3/p' | tail -n 1
}
on_corten() { grep -q corten /sys/hypervisor/version/extra; }
free_pages() {
    if on_corten; then
        accounts | awk '{ print $1 / 4 }'
    else
        echo $(($(free_memory) * 256))
    fi
}

works() { # name, command
    name=$1
    shift
    check "$name" "$("$@" >/tmp/said 2>&1 && echo yes)" "$(tail -n 5 /tmp/said)"
}
# Pages that no domain has as its memory. Serving domains may have Corten keep some for Dom0 that were free before.
idle_pages() {
    if on_corten; then
        accounts | awk '{ print ($1 + $2 + $3) / 4 }'
    else
        free_pages
    fi
}
is_again() { # free_pages or idle_pages, and how many that were
    after=$($1)
    [ "$after" = $2 ]
}
gives_back() { # what, and as above: a toolstack destroys a domain in the background, and forgets its name before
    wait_for 60 is_again $2 $3
    check "$1 memory is free" "$([ "$after" = $3 ] && echo yes)" "$3 pages before, $after after"
    on_corten && echo "free, heap and page tables, in KiB: $(accounts)"
}
