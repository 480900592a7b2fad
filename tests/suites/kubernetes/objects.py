# Reads manifests from standard input, holds each against the schema of its kind, strictly, in these versions of
# Kubernetes, and prints them all as JSON. Kinds that operators bring have no schema here.
import json, sys
import kubernetes_validate, yaml

BROUGHT_BY_OPERATORS = {"monitoring.coreos.com", "networking.istio.io"}

objects = [found for found in yaml.safe_load_all(sys.stdin) if found]
for found in objects:
    if found["apiVersion"].split("/")[0] in BROUGHT_BY_OPERATORS:
        continue
    for version in sys.argv[1:]:
        try:
            kubernetes_validate.validate(found, version, strict=True)
        except Exception as error:
            sys.exit(f"{found['kind']} {found['metadata']['name']}, Kubernetes {version}: {error}")
json.dump(objects, sys.stdout)
