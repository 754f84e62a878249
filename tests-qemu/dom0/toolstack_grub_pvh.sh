#!/bin/busybox sh
# A domain whose kernel is Debian's GRUB: 32 bits wide, it shows the menu of its own disk and starts Debian's kernel from there.
. /scripts/domains
before=$(free_pages)
works "xl create" xl create /root/grub.cfg
works "its guest comes up" wait_for 240 ups grub 1
cat $(console grub)
for text in 'Reading (xen/xvda)/boot/grub/grub.cfg' 'The menu of this disk' 'GRUB loads the kernel'; do
    check "GRUB says: $text" "$(grep -qF "$text" $(console grub) && echo yes)" "$(tail -n 5 $(console grub))"
done
works "xl shutdown" xl shutdown -w grub
works "it is gone" wait_for 30 is_gone grub
gives_back its free_pages $before
xl dmesg | tail -n 5
