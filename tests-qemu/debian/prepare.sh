#!/bin/sh
# Finishes a Debian that has just been unpacked onto the first disk: what can only be done while it runs.
dmesg --console-level 1
grub-install /dev/sda && update-grub && echo "=== PREPARED ==="
systemctl poweroff
