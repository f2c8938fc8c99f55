#!/bin/bash
# Becomes the first process of a host: in namespaces of its own, with a disk laid over this machine's, it runs sshd.
#
#     host.sh NAME DISK ADDRESS NAMES KEY SHARED FOLDER...
#
# DISK is kept over a power cut, NAMES is its /etc/hosts, KEY may log in as root, SHARED is /shared on every host; each FOLDER is
# there as on this machine, even under /tmp, which is else the host's own, or on another disk.
set -eu
name=$1 disk=$2 address=$3 names=$4 key=$5 shared=$6
shift 6
root=$disk/root
hostname "$name"
mkdir -p "$disk/upper" "$disk/work" "$root"
mount -t overlay -o "lowerdir=/,upperdir=$disk/upper,workdir=$disk/work" overlay "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/dev/shm"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
mkdir -p "$root/run/sshd" "$root/shared" "$root/home/host/.ssh"
mount --bind "$shared" "$root/shared"
for folder in "$@"; do
    mkdir -p "$root$folder"
    mount --bind "$folder" "$root$folder"
done
sed -i 's#^root:\([^:]*\):0:0:\([^:]*\):[^:]*:#root:\1:0:0:\2:/home/host:#' "$root/etc/passwd"
grep -q '^sshd:' "$root/etc/passwd" || echo 'sshd:x:101:65534::/run/sshd:/usr/sbin/nologin' >> "$root/etc/passwd"
cat "$names" > "$root/etc/hosts"
: > "$root/etc/resolv.conf"
install -m 600 "$key.pub" "$root/home/host/.ssh/authorized_keys"
touch "$root/home/host/.bashrc"
chown -R 0:0 "$root/home/host"
[ -e "$root/etc/host_key" ] || ssh-keygen -q -t ed25519 -N '' -f "$root/etc/host_key"
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/home/host LANG=C.UTF-8 \
    chroot "$root" /usr/sbin/sshd -D -e -f /dev/null -o ListenAddress="$address" -o HostKey=/etc/host_key \
    -o PidFile=none -o UsePAM=no -o PasswordAuthentication=no -o StrictModes=no -o PrintMotd=no
