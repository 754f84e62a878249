#!/bin/busybox sh
# Debian's `xl` makes the example domain, looks at it, and ends it in its ways: nothing of it is left.
. /scripts/domains

xl info
xl list
before=$(free_pages)
works "xl create" xl create /root/example.cfg
works "its guest comes up" wait_for 240 ups example 1
cat $(console example)
xl list
xl vcpu-list
works "xl pause" xl pause example
works "xl unpause" xl unpause example
works "xl shutdown" xl shutdown -w example
works "it is gone" wait_for 30 is_gone example
works "xl create again" xl create /root/example.cfg
works "xl destroy" xl destroy example
works "it is gone" wait_for 30 is_gone example
gives_back its free_pages $before
xl dmesg | tail -n 5
