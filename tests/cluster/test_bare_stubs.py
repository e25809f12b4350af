"""The protos alone, compiled in an environment without spacegrid, are enough to use a node."""

import subprocess
import sys
from pathlib import Path

import pytest
from spacegrid.testing import LocalCluster

ROOT = Path(__file__).parent.parent.parent
PROTO_PYTHON = ROOT / "build" / "protovenv" / "bin" / "python"

CLIENT = """
import sys
import grpc
from spacegrid.v1 import admin_pb2, admin_pb2_grpc, data_pb2, data_pb2_grpc

try:
    import spacegrid._core
except ImportError:
    pass
else:
    raise SystemExit("this environment must not have spacegrid")

# Through every node: each forwards to the partition's primary.
stubs = [data_pb2_grpc.DataStub(grpc.insecure_channel(address)) for address in sys.argv[1:]]
opened = stubs[0].Open(data_pb2.OpenRequest(hello=data_pb2.Hello(protocol_version=1)), timeout=5)
assert len(opened.cluster_id) == 16
assert len(opened.routes.nodes) == 3
for number in range(30):
    key = b"k%d" % number
    token = data_pb2.RequestToken(stream=opened.stream, number=number + 1, lowest_open=1)
    request = data_pb2.PutRequest(map="plain", key=key, value=b"v", token=token)
    first = stubs[number % 3].Put(request, timeout=5)
    again = stubs[(number + 1) % 3].Put(request, timeout=5)
    assert first.applied and first.copies == 2, first
    assert again.version == first.version, "the same token is applied once"
    assert stubs[(number + 2) % 3].Get(
        data_pb2.GetRequest(map="plain", key=key), timeout=5
    ).value.data == b"v"
many = stubs[1].GetMany(
    data_pb2.GetManyRequest(map="plain", keys=[b"k1", b"none", b"k2"]), timeout=5
)
assert [reply.HasField("value") for reply in many.replies] == [True, False, True]
refused = stubs[2].Put(
    data_pb2.PutRequest(
        map="plain", key=b"k1", value=b"w", condition=data_pb2.PUT_CONDITION_IF_ABSENT
    ),
    timeout=5,
)
assert not refused.applied and refused.version > 0
assert stubs[0].Delete(data_pb2.DeleteRequest(map="plain", key=b"k1"), timeout=5).existed
assert not stubs[0].Delete(data_pb2.DeleteRequest(map="plain", key=b"k1"), timeout=5).existed


def refusal(call, request):
    try:
        call(request, timeout=5)
    except grpc.RpcError as error:
        return error.code().name, error.details()
    raise SystemExit(f"{request} was not refused")


other = data_pb2.Hello(protocol_version=1, cluster_id=b"x" * 16)
code, details = refusal(stubs[0].Open, data_pb2.OpenRequest(hello=other))
assert code == "FAILED_PRECONDITION" and "expects cluster" in details, details
newer = data_pb2.Hello(protocol_version=9)
code, details = refusal(stubs[0].Open, data_pb2.OpenRequest(hello=newer))
assert code == "FAILED_PRECONDITION" and "protocol version 9" in details, details
code, details = refusal(stubs[0].Exchange, data_pb2.Frame(data=b"not a frame"))
assert code == "INVALID_ARGUMENT", (code, details)
code, details = refusal(
    stubs[0].Put, data_pb2.PutRequest(map="plain", key=b"k", value=bytes(2 << 20))
)
assert code == "INVALID_ARGUMENT" and "1048576" in details, (code, details)
code, details = refusal(
    stubs[0].Put, data_pb2.PutRequest(map="plain", key=b"k", value=bytes(6 << 20))
)
assert code == "RESOURCE_EXHAUSTED", (code, details)
admin = admin_pb2_grpc.AdminStub(grpc.insecure_channel(sys.argv[1]))
assert admin.Status(admin_pb2.StatusRequest(), timeout=5).unserved == 0
print("done")
"""


@pytest.mark.timeout(120)
def test_bare_stubs_talk_to_every_node(three_nodes: LocalCluster, tmp_path: Path) -> None:
    assert PROTO_PYTHON.exists(), "tools/proto.sh makes the environment"
    sources = sorted(str(path) for path in (ROOT / "proto").rglob("*.proto"))
    subprocess.run(
        [
            *(PROTO_PYTHON, "-m", "grpc_tools.protoc", "-I", ROOT / "proto"),
            *(f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}"),
            *sources,
        ],
        check=True,
    )
    (tmp_path / "client.py").write_text(CLIENT)
    result = subprocess.run(
        [PROTO_PYTHON, "client.py", *three_nodes.addresses],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "done\n"
    assert sys.executable != str(PROTO_PYTHON)
