#!/bin/sh
# Installs Corten's package on Debian, boots it, and removes it again: a step for each boot, counted on the disk.
. /mnt/steps/lib
dmesg --console-level 1
export DEBIAN_FRONTEND=noninteractive
menu=/boot/grub/grub.cfg
early=/boot/early.cpio
other=/boot/xen-4.20-amd64.gz
state=/var/lib/steps
step=$(cat $state 2>/dev/null || echo 1)
echo $((step + 1)) >$state
echo "=== STEP $step ==="
kernel=$(uname -r)
failed_units() { systemctl list-units --failed --plain --no-legend; }
check "step $step: no unit has failed" "$([ -z "$(failed_units)" ] && echo yes)" "$(failed_units)"

case $step in
1)
    check "Linux runs on the machine itself" "$([ ! -e /sys/hypervisor/type ] && echo yes)" "$(cat /sys/hypervisor/type)"
    # Early microcode for a CPU that there is not, and a hypervisor that sorts like Xen's own.
    mkdir -p /tmp/early/kernel/x86/microcode
    echo "no microcode" >/tmp/early/kernel/x86/microcode/AuthenticAMD.bin
    (cd /tmp/early && find kernel | cpio --quiet -o -H newc) >$early
    : >$other
    apt-get -q install -y /mnt/steps/corten.deb
    check "apt installs the package" "$(dpkg -s corten | grep -qx 'Status: install ok installed' && echo yes)" "$(dpkg -s corten)"
    # Each hypervisor has a menu of its own. The first entry is the default's, and it is Corten's.
    first=$(grep -E -m 1 '^[[:space:]]multiboot2' $menu)
    check "the first entry is Corten's" "$(echo "$first" | grep -q '/boot/xen-4.20-corten.gz placeholder' && echo yes)" "$first"
    title=$(grep -E -m 1 "^menuentry .*with Xen hypervisor'" $menu | cut -d "'" -f 2)
    check "it is the default" "$([ -n "$title" ] && grep -qF "set default=\"$title\"" $menu && echo yes)" "$(grep 'set default' $menu)"
    modules=$(sed -n '/^menuentry .*with Xen hypervisor/,/^}/s/^[[:space:]]*module2[[:space:]]*//p' $menu | tr -s ' ' | cut -d ' ' -f 1,2)
    wanted="/boot/vmlinuz-$kernel placeholder
--nounzip /boot/initrd.img-$kernel
--nounzip /boot/early.cpio"
    check "it loads the kernel, its initrd and the microcode" "$([ "$modules" = "$wanted" ] && echo yes)" "$modules"
    systemctl reboot
    ;;
2)
    echo "command line: $(cat /proc/cmdline)"
    version=$(cat /sys/hypervisor/version/major).$(cat /sys/hypervisor/version/minor)$(cat /sys/hypervisor/version/extra)
    check "Corten runs" "$(case $version in 4.20*-corten) echo yes ;; esac)" "$version"
    check "Dom0's command line is the menu's" "$(grep -qE "(^| )root=UUID=[^ ]+ ro console=hvc0 retain_initrd *$" /proc/cmdline && echo yes)" "$(cat /proc/cmdline)"
    check "the placeholder is not in it" "$(grep -q placeholder /proc/cmdline || echo yes)" "$(cat /proc/cmdline)"
    # Microcode counts at the very beginning only.
    cat $early /boot/initrd.img-$kernel | cmp - /sys/firmware/initrd >/tmp/cmp 2>&1
    check "microcode is in front of the initrd" "$([ $? = 0 ] && echo yes)" "$(cat /tmp/cmp)"
    xl list | tee /tmp/list
    check "xl list shows Domain-0" "$(awk '$1 == "Domain-0" && $2 == 0 && $3 > 600 && $3 <= 640' /tmp/list | grep -q . && echo yes)" "$(cat /tmp/list)"
    xl info | tee /tmp/info
    check "xl info names Corten" "$(grep -qE '^xen_version +: 4\.20.*-corten$' /tmp/info && echo yes)" "$(grep xen_version /tmp/info)"
    check "the options are the menu's" "$(grep -qE '^xen_commandline +: .*dom0_mem=640M,max:640M dom0_max_vcpus=1-4 noreboot=true ucode=scan' /tmp/info && echo yes)" "$(grep commandline /tmp/info)"
    xl dmesg >/tmp/xl-dmesg
    check "nothing to warn of" "$(grep -qE '\] (warn|error) ' /tmp/xl-dmesg || echo yes)" "$(grep -E '\] (warn|error) ' /tmp/xl-dmesg)"
    for word in WARNING: BUG: 'Call Trace' 'unchecked MSR' 'cut here' Oops 'general protection' 'soft lockup' 'I/O error' 'EXT4-fs error'; do
        dmesg | grep -v 'Speculative Return Stack Overflow: WARNING:' | grep -m 1 "$word" >/tmp/found
        check "kernel log: no $word" "$([ ! -s /tmp/found ] && echo yes)" "$(cat /tmp/found)"
    done
    # The one that runs is then an old one.
    rm -f /run/reboot-required*
    apt-get -q install -y --reinstall /mnt/steps/corten.deb
    check "another installation asks for a reboot" "$([ -e /run/reboot-required ] && grep -qx corten /run/reboot-required.pkgs && echo yes)" "$(ls /run)"
    rm $other
    apt-get -q remove -y corten
    check "removal takes the image away" "$([ ! -e /boot/xen-4.20-corten.gz ] && echo yes)" "$(ls /boot)"
    check "removal takes the entries away" "$(grep -qE 'corten|multiboot' $menu || echo yes)" "$(grep -E 'corten|multiboot' $menu)"
    systemctl reboot
    ;;
*)
    check "Linux runs on the machine itself again" "$([ ! -e /sys/hypervisor/type ] && [ -e /boot/vmlinuz-$kernel ] && echo yes)" "$(cat /sys/hypervisor/type)"
    echo "=== DOM0 SCRIPT DONE ==="
    systemctl poweroff
    ;;
esac
