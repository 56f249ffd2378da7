# A systemd of its own in namespaces of its own: what it and its units write stays in memory and is gone with it.
# $1 binary, $2 unit, $3 folder with flagpost.toml and database-password
set -e
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir -p /run/etc /run/etc-work /run/lib /run/lib-work /run/bin
mount -t tmpfs tmpfs /var/log
mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/etc-work /etc
mount -t overlay overlay -o lowerdir=/var/lib,upperdir=/run/lib,workdir=/run/lib-work /var/lib
cp "$1" /run/bin/flagpost
mkdir -p /etc/flagpost /etc/systemd/system/flagpost.service.d
cp "$3"/flagpost.toml "$3"/database-password /etc/flagpost/
chmod 600 /etc/flagpost/database-password
sed 's,/usr/bin/flagpost,/run/bin/flagpost,' "$2" > /etc/systemd/system/flagpost.service
# Shorter, to see it at work.
printf '[Service]\nWatchdogSec=4\nRestartSec=1\n' > /etc/systemd/system/flagpost.service.d/test.conf
printf '[Unit]\nRequires=systemd-journald.service\nAfter=systemd-journald.service\n' > /etc/systemd/system/bare.target
export container=unshare
exec /lib/systemd/systemd --system --unit=bare.target --log-target=console --log-level=info --show-status=false
