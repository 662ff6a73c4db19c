"""Hooks for schemathesis: requests are signed as operators and machines sign them, so that what is behind the
signatures is reached too. MUSTER_FLEET names the folder of the fleet whose keys are used."""

import hashlib
import itertools
import json
import os
import pathlib
import time

import requests
import schemathesis
from nacl.signing import SigningKey

FLEET = pathlib.Path(os.environ["MUSTER_FLEET"])
URL = os.environ["MUSTER_URL"]
AUDIENCE = hashlib.sha256((FLEET / "controller/root/1.root.json").read_bytes()).hexdigest()
# One who is enrolled, and one whom nothing else needs: it may be revoked, and admitted by another key.
MACHINE, SPARE = "cinnabar", "spare"
OPERATOR_PREFIX, CHECK_IN_PREFIX, REPORTS_PREFIX = (
    f"muster-{what}-v1\0".encode() for what in ("operator-request", "check-in", "reports")
)
CHECK_IN, REPORTS, ENROL = "/v1/checkin", "/v1/reports", "/v1/enrol"
ENDS_A_KEY = ("/revoke", "/readmit")
# Polls end soon.
LONGEST_WAIT = 1

nonces = itertools.count(time.time_ns())
numbers = itertools.count(int(time.time()))


def private_key(file):
    """The key of an unencrypted PKCS#8 file."""
    import base64

    lines = [line for line in file.read_text().splitlines() if not line.startswith("-")]
    return SigningKey(base64.b64decode("".join(lines))[16:48])


OPERATOR = private_key(FLEET / "operator/keys/operator.pem")
MACHINE_KEY = private_key(FLEET / MACHINE / "state/machine.pem")


def of_operator(method, path, body):
    """The header muster-operator."""
    nonce = f"{next(nonces):032x}"
    at, body = int(time.time()), hashlib.sha256(body).hexdigest()
    message = f"{AUDIENCE}\n{method}\n{path}\n{at}\n{nonce}\n{body}\n".encode()
    return json.dumps({
        "key": OPERATOR.verify_key.encode().hex(),
        "at": at,
        "nonce": nonce,
        "signature": OPERATOR.sign(OPERATOR_PREFIX + message).signature.hex(),
        "body": body,
    })


def of_machine(prefix, body):
    return MACHINE_KEY.sign(prefix + body).signature.hex()


def check_in(**more):
    return {
        "audience": AUDIENCE, "machine": MACHINE, "class": "nixos", "system": "x86_64-linux", "boot_id": "b",
        "seq": next(numbers), "clock": int(time.time() * 1000), "agent": "0.1.0", "holds": {}, "phase": "idle",
        **more,
    }


def bearer_of_machine():
    body = json.dumps(check_in()).encode()
    answer = requests.post(URL + CHECK_IN, data=body, headers={"muster-signature": of_machine(CHECK_IN_PREFIX, body)})
    answer.raise_for_status()
    return answer.json()["bearer"]


def bearer_of_operator():
    path = "/v1/operator/session"
    answer = requests.post(URL + path, headers={"muster-operator": of_operator("POST", path, b"")})
    answer.raise_for_status()
    return answer.json()["bearer"]


class Bearers:
    """Both are made when they are first needed, and again before they end."""

    def __init__(self):
        self.made, self.at = {}, 0

    def of(self, who):
        if time.time() - self.at > 600:
            self.made, self.at = {}, time.time()
        if who not in self.made:
            self.made[who] = bearer_of_operator() if who == "operator" else bearer_of_machine()
        return self.made[who]


BEARERS = Bearers()


class Signed(requests.auth.AuthBase):
    """Signs a request as it will be sent."""

    def __call__(self, request):
        path = request.path_url
        body = request.body or b""
        body = body.encode() if isinstance(body, str) else body
        headers = request.headers
        if path.startswith("/v1/operator/"):
            headers["muster-operator"] = of_operator(request.method, path, body)
        elif path in (CHECK_IN, REPORTS):
            prefix = CHECK_IN_PREFIX if path == CHECK_IN else REPORTS_PREFIX
            headers["muster-signature"] = of_machine(prefix, body)
        elif path.startswith("/cache/") and request.method in ("PUT", "POST"):
            headers["authorization"] = "Bearer " + BEARERS.of("operator")
        elif path.startswith(("/cache/", "/v1/machines/")):
            headers["authorization"] = "Bearer " + BEARERS.of("machine")
        return request


def mostly(value):
    """Three times of four, by what was generated, so that a seed means the same every time."""
    return hashlib.sha256(repr(value).encode()).digest()[0] % 4 != 0


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    if path_parameters and mostly(path_parameters):
        name = SPARE if context.operation.path.endswith(ENDS_A_KEY) else MACHINE
        for parameter in ("name", "of"):
            if parameter in path_parameters:
                path_parameters[parameter] = name
    return path_parameters


@schemathesis.hook
def map_query(context, query):
    if query and "wait" in query:
        try:
            query["wait"] = min(int(query["wait"]), LONGEST_WAIT)
        except (TypeError, ValueError):
            pass
    return query


@schemathesis.hook
def map_body(context, body):
    """Documents that name the machine whose key signs them, and a number that is due."""
    path = context.operation.path
    if isinstance(body, dict) and mostly(body):
        if path == CHECK_IN:
            body.update(audience=AUDIENCE, machine=MACHINE, seq=next(numbers), **{"class": "nixos"})
            body.pop("new_key", None)
        elif path == REPORTS:
            body["machine"] = MACHINE
    return body


@schemathesis.hook
def before_call(context, case, kwargs):
    kwargs["auth"] = Signed()
