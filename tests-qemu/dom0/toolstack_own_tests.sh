#!/bin/busybox sh
# Xen's own tests out of xen-utils.
. /scripts/lib
for program in test-cpu-policy test-resource test-paging-mempool test-xenstore; do
    timeout 120 /usr/lib/xen-4.20/bin/$program >/tmp/said 2>&1
    status=$?
    cat /tmp/said
    check $program "$([ $status = 0 ] && ! grep -iE 'fail' /tmp/said | grep -v 'failure:$' && echo yes)" "it ends with $status"
done
