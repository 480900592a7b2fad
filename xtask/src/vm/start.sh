#!/bin/busybox sh
# Readies the machine, runs the suites, says how they ended, and switches off.
for applet in $(/bin/busybox --list); do
    [ -e "/bin/$applet" ] || /bin/busybox ln -s /bin/busybox "/bin/$applet"
done
export PATH=/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mkdir -p /run/netns
chmod 777 /tmp
for module in /modules/*.ko; do
    insmod "$module"
done
ip link set lo up
ulimit -n 20000
echo "== kernel $(uname -r)"
underpass doctor
cd /root
UNDERPASS_BIN=/bin/underpass suites --test-threads=2 @ARGS@ 2>&1
code=$?
# What the kernel has to say of it, a process killed for want of memory for instance.
[ "$code" = 0 ] || dmesg | tail -n 60
echo "== exit $code"
poweroff -f
