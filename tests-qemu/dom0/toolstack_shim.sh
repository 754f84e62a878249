#!/bin/busybox sh
# Debian's kernel as a PV guest, inside a domain that Xen's shim runs in.
. /scripts/domains
before=$(free_pages)
works "xl create" xl create /root/shim.cfg
works "its guest comes up" wait_for 300 ups shim 1
cat $(console shim)
check "its kernel is a PV one" "$(grep -q 'Hypervisor detected: Xen PV' $(console shim) && echo yes)" \
    "$(grep -m 1 'Hypervisor detected' $(console shim))"
works "xl shutdown" xl shutdown -w shim
works "it is gone" wait_for 30 is_gone shim
gives_back its free_pages $before
xl dmesg | tail -n 5
