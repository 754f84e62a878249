#!/bin/busybox sh
. /scripts/lib
xl -vvv create /root/example.cfg 2>&1 | tail -n 60
sleep 20
cat /var/log/xen/console/guest-example.log | tail -n 30
xl list
xl dmesg | tail -n 30
