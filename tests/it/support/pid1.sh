# A systemd of its own in namespaces of its own: what it and its units write stays in memory and is gone with it.
# It knows the units below and no others: those of a real boot would mend, mount and clean up the machine (/tmp too).
# $1 binary, $2 unit, $3 folder with flagpost.toml and database-password
set -e
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir -p /run/etc /run/etc-work /run/lib /run/lib-work /run/bin /run/units
mount -t tmpfs tmpfs /var/log
mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/etc-work /etc
mount -t overlay overlay -o lowerdir=/var/lib,upperdir=/run/lib,workdir=/run/lib-work /var/lib
cp "$1" /run/bin/flagpost
mkdir -p /etc/flagpost /run/units/flagpost.service.d
sed 's,/usr/bin/flagpost,/run/bin/flagpost,' "$2" > /run/units/flagpost.service
cp "$3"/flagpost.toml "$3"/database-password /etc/flagpost/
chmod 600 /etc/flagpost/database-password
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /var/tmp
cd /run/units
# Shorter, to see it at work.
printf '[Service]\nWatchdogSec=4\nRestartSec=1\n' > flagpost.service.d/test.conf
for target in sysinit basic shutdown network-online; do
    printf '[Unit]\nDefaultDependencies=no\n' > "$target.target"
done
printf '[Unit]\nDefaultDependencies=no\nRequires=journal.service\nAfter=journal.service\n' > bare.target
printf '[Unit]\nDefaultDependencies=no\n[Service]\nType=notify\nExecStart=/lib/systemd/systemd-journald\n' > journal.service
export container=unshare SYSTEMD_UNIT_PATH=/run/units
exec /lib/systemd/systemd --system --unit=bare.target --log-target=console --log-level=info --show-status=false
