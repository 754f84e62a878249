#!/bin/busybox sh
# A domain that may grow: `maxmem=` above `memory=`, of which it gets the lower at first. It is ballooned up, down and up again, and its memory is
# free once it is gone.
. /scripts/domains
sed 's/^memory = 256$/&\nmaxmem = 512/' /root/example.cfg >/tmp/example.cfg
memory() { xl list example 2>/dev/null | awk 'NR == 2 { print $3 }'; }
has() { # MiB by what xl says
    [ "$(memory)" = $1 ]
}
maximum() { xl list -l example | awk '/"max_memkb"/ { sub(/,/, "", $2); print $2 / 1024 }'; }

before=$(free_pages)
works "xl create" xl create /tmp/example.cfg
works "its guest comes up" wait_for 240 ups example 1
cat $(console example)
works "it has 256 MiB" wait_for 60 has 256
check "it may have 512 MiB" "$([ "$(maximum)" = 512 ] && echo yes)" "$(maximum)"
works "xl mem-set 512" xl mem-set example 512
works "it has 512 MiB" wait_for 60 has 512
works "xl mem-set 300" xl mem-set example 300
works "it has 300 MiB" wait_for 60 has 300
works "xl mem-set 400" xl mem-set example 400
works "it has 400 MiB" wait_for 60 has 400
xl list
xl debug-keys q
works "xl shutdown" xl shutdown -w example
works "it is gone" wait_for 30 is_gone example
gives_back its free_pages $before

# A kernel that writes zeroes to all of its memory first can do with less; one that writes something else cannot, and ends, and nothing else does.
writes() { # which pattern
    : >$(console example)
    sed "s/^extra = \"/&memtest=$1 /" /tmp/example.cfg >/tmp/writes.cfg
    xl create /tmp/writes.cfg
}
works "xl create with zeroes everywhere" writes 1
works "its guest comes up" wait_for 240 ups example 1
works "xl destroy" xl destroy example
works "it is gone" wait_for 30 is_gone example
gives_back its free_pages $before
works "xl create with something everywhere" writes 2
works "it is gone" wait_for 60 is_gone example
gives_back its free_pages $before
xl dmesg | tail -n 20
