# What scripts share that have `xl` make domains.
. /scripts/lib
wait_for() { # seconds, command
    left=$1
    shift
    until "$@"; do
        [ $left -gt 0 ] || return 1
        sleep 1
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

works() { # name, command
    name=$1
    shift
    check "$name" "$("$@" >/tmp/said 2>&1 && echo yes)" "$(tail -n 5 /tmp/said)"
}
is_free() { # MiB
    after=$(free_memory)
    [ "$after" = $1 ]
}
gives_back() { # what, and how many MiB are to be free: a toolstack destroys a domain in the background, and forgets its name before
    wait_for 60 is_free $2
    check "$1 memory is free" "$([ "$after" = $2 ] && echo yes)" "$2 MiB before, $after MiB after"
}
