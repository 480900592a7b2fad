# Runs the image in a store of its own, as the manifests run it, and with more and fewer rights.
# Arguments: a directory, the image's archive, its name, the configuration, names (/etc/hosts), the URL to fetch, the
# certificate's authority; then what the overlay says: user, capabilities with commas, and the program's arguments.
set -e
scratch=$1 archive=$2 image=$3 config=$4 hosts=$5 url=$6 authority=$7 user=$8 capabilities=$9
shift 9

mount -t tmpfs tmpfs "$scratch"
mount -t cgroup2 cgroup2 /sys/fs/cgroup
podman() {
    command podman --root "$scratch/root" --runroot "$scratch/run" --storage-driver vfs --runtime crun "$@"
}
run() {
    name=$1
    shift
    # Containers may not have more descriptors and processes than this machine gives.
    podman run --detach --name "$name" --network host --cgroups disabled --log-driver k8s-file \
        --ulimit "nofile=$(ulimit -Hn):$(ulimit -Hn)" --ulimit nproc=4096:4096 --no-healthcheck \
        --volume "$hosts:/etc/hosts:ro" --volume "$config:/etc/underpass:ro" "$@" >/dev/null
}
ready() {
    for _ in $(seq 100); do
        if curl -s --max-time 2 http://127.0.0.1:9129/readyz; then return; fi
        sleep 0.1
    done
}
use() {
    curl -sS --max-time 10 --proxy http://127.0.0.1:3128 --cacert "$authority" "$url"
}
end() {
    podman stop --time 30 "$1" >/dev/null
    echo "ended with $(podman inspect --format '{{.State.ExitCode}}' "$1")"
    podman logs "$1" 2>&1
}

# Debian's podman has a profile that goes by CAP_SYS_ADMIN alone; other container runtimes allow bpf with CAP_BPF, too.
python3 - >"$scratch/seccomp.json" <<'PROGRAM'
import json
profile = json.load(open("/usr/share/containers/seccomp.json"))
for rule in profile["syscalls"]:
    if "CAP_SYS_ADMIN" in rule.get("excludes", {}).get("caps", []):
        rule["names"] = [name for name in rule["names"] if name != "bpf"]
profile["syscalls"].append({"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_BPF"]}})
print(json.dumps(profile))
PROGRAM
seccomp="--security-opt seccomp=$scratch/seccomp.json"

podman load --quiet --input "$archive"
echo "== image"
podman inspect --type image --format '{{json .Config}}' "$image"
podman inspect --type image --format '{{json .HealthCheck}}' "$image"
podman create --name files "$image" >/dev/null
echo "== files"
podman export files | tar -tv
echo "== bill"
podman cp files:/usr/share/doc/underpass/underpass.cdx.json -

echo "== least"
run least $seccomp --read-only --user "$user" --cap-drop all --cap-add "$capabilities" \
    --tmpfs /run/underpass:rw,mode=1777 "$image" "$@"
ready
use
podman exec least underpass status
podman exec least underpass doctor
end least

echo "== none"
run none --cap-drop all "$image" "$@"
ready
use
podman exec none underpass status
end none

echo "== seccomp"
run seccomp --cap-drop all --cap-add "$capabilities" "$image" "$@"
ready
use
end seccomp

echo "== no-new-privileges"
run nnp $seccomp --cap-drop all --cap-add "$capabilities" --security-opt no-new-privileges "$image" "$@"
ready
use
end nnp

echo "== root"
run root --read-only --user 0 --privileged --tmpfs /run/underpass "$image" "$@"
ready
use
podman exec root underpass status
end root

echo "== default"
podman run --rm --network host --cgroups disabled --ulimit "nofile=$(ulimit -Hn):$(ulimit -Hn)" --ulimit nproc=4096:4096 \
    --no-healthcheck "$image" check --config /etc/underpass/underpass.toml
echo "== end"
