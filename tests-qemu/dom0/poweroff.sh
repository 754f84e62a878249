#!/bin/busybox sh
# Nothing but the way down: what a boot is measured with.
exit 0
