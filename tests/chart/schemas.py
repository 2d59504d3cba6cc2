"""Checks objects against the strict schemas of versions of Kubernetes: a field that is not known is an error.

Reads {"versions": [...], "objects": [[version, object], ...]} and prints one line for each object that does not fit. The versions are those
that have to be known, the newest of which has to be the newest there is.
"""

import functools
import json
import sys

import kubernetes_validate
from kubernetes_validate import utils

# Otherwise read anew for each object.
utils.schema_contents = functools.cache(utils.schema_contents)
utils.all_versions = functools.cache(utils.all_versions)

asked = json.load(sys.stdin)
known = [utils.major_minor(version) for version in utils.all_versions()]
unknown = [version for version in asked["versions"] if version not in known]
if unknown or known[-1] != asked["versions"][-1]:
    print(f"there are schemas of {known}, and asked for were {asked['versions']}")
for version, checked in asked["objects"]:
    try:
        kubernetes_validate.validate(checked, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        where = ".".join(str(step) for step in error.path)
        print(f"{checked['kind']} {checked['metadata']['name']} on {version}: {where}: {error.message}")
    except kubernetes_validate.SchemaNotFoundError as error:
        print(f"{checked['kind']} {checked['metadata']['name']} on {version}: {error.message}")
