# Makes the image out of what is laid out; runs as root, in a store of its own that is gone afterwards.
# Arguments: the directory with `root` and `run`, the Containerfile, the archive to write, the image's name, its
# version, its commit, its time in seconds.
set -e
context=$1 containerfile=$2 archive=$3 name=$4 version=$5 revision=$6 time=$7
store=$(mktemp -d)
trap 'rm -rf "$store"' EXIT
chmod -R u=rwX,go=rX "$context"
chmod 0750 "$context/run/underpass"
# Permitted, not effective: without them, too, the program starts.
setcap cap_bpf,cap_net_admin,cap_perfmon,cap_net_bind_service=p "$context/root/usr/bin/underpass"
podman() {
    command podman --root "$store/root" --runroot "$store/run" --storage-driver vfs "$@"
}
podman build --quiet --format docker --timestamp "$time" --build-arg "VERSION=$version" --build-arg "REVISION=$revision" \
    --file "$containerfile" --tag "$name" "$context" >&2
rm -f "$archive"
podman save --quiet --format docker-archive --output "$archive" "$name"
if [ -n "$SUDO_UID" ]; then chown "$SUDO_UID:$SUDO_GID" "$archive"; fi
