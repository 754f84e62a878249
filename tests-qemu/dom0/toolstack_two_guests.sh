#!/bin/busybox sh
# The example domain and a second one beside it, both at once.
. /scripts/domains
before=$(free_memory)
works "xl create" xl create /root/example.cfg
truncate -s 256M /root/example/second.img
works "xl create another" xl create /root/example.cfg 'name = "second"' 'vif = [ "mac=00:16:3e:00:00:04,bridge=xenbr0" ]' \
    'disk = [ "file:/root/example/second.img,xvda,w", "phy:/dev/example3,xvdb,w" ]' \
    "extra = \"$(sed -n 's/^extra = "\(.*\)"$/\1/p' /root/example.cfg | sed 's/10.0.0.2/10.0.0.5/')\""
works "the first comes up" wait_for 900 ups example 1
works "the second comes up" wait_for 900 ups second 1
xl list
for name in example second; do
    cat $(console $name)
    works "xl shutdown $name" xl shutdown -w $name
    works "$name is gone" wait_for 60 is_gone $name
done
gives_back their $before
xl dmesg | tail -n 5
