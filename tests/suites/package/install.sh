# Installs the package on a copy of this system, uses it as root and as a client would, and removes it. What is written
# goes into memory: the copy is an overlay, of which nobody else sees anything.
# Arguments: a directory for it, the package, the URL to fetch, the certificate's authority, the origin's network.
set -e
scratch=$1 package=$2 url=$3 authority=$4 network=$5

mount -t tmpfs tmpfs "$scratch"
mkdir "$scratch/upper" "$scratch/work" "$scratch/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$scratch/upper,workdir=$scratch/work" "$scratch/root"
root=$scratch/root
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
cp "$package" "$root/tmp/underpass.deb"
cp "$authority" "$root/tmp/authority.pem"
cp /etc/hosts "$root/run/hosts"
mount --bind "$root/run/hosts" "$root/etc/hosts"
in_root() { chroot "$root" "$@"; }

echo "== install"
in_root dpkg -i /tmp/underpass.deb
in_root getent passwd underpass
in_root stat -c '%n %U %G %a' /etc/underpass/underpass.toml /usr/bin/underpass
in_root underpass --version
in_root sh -c 'zcat /usr/share/man/man1/underpass-run.1.gz | head -n 5'
in_root bash -n /usr/share/bash-completion/completions/underpass
in_root test -L /etc/systemd/system/multi-user.target.wants/underpass.service && echo enabled

echo "== start"
in_root sed -i "s|^allow_destination = .*|allow_destination = [\"$network\"]|" /etc/underpass/underpass.toml
unit=$root/lib/systemd/system/underpass.service
setting() { sed -n "s/^$1=//p" "$unit"; }
in_root install -d -o underpass -g underpass /run/underpass /var/log/underpass
capabilities=-all$(setting CapabilityBoundingSet | tr 'A-Z ' 'a-z\n' | sed 's/^cap_/,+/' | tr -d '\n')
# As systemd would. Not by the function: its process is to be the proxy.
chroot "$root" env $(setting Environment) setpriv --reuid=underpass --regid=underpass --clear-groups --no-new-privs \
    --inh-caps="$capabilities" --ambient-caps="$capabilities" --bounding-set="$capabilities" \
    $(setting ExecStart) >"$root/run/access.log" 2>"$root/run/diagnostics.log" &
proxy=$!
for _ in $(seq 100); do
    if in_root underpass status >/dev/null 2>&1; then break; fi
    sleep 0.1
done
in_root underpass status || cat "$root/run/diagnostics.log"

echo "== use"
curl -sS --max-time 10 --proxy http://127.0.0.1:3128 --cacert "$authority" "$url"
in_root env $(setting Environment) $(setting ExecReload)
kill -TERM "$proxy"
wait "$proxy"
echo "ended with $?"
cat "$root/run/access.log"

echo "== remove"
in_root dpkg --purge underpass
in_root getent passwd underpass || echo "no user"
umount "$root/etc/hosts"
umount "$root/tmp"
umount "$root/run"

echo "== left"
cd "$scratch/upper"
find . ! -type d | sort
echo "== end"
