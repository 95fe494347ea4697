"""The yardstick: a grpcio sync server that parses a DecideRequest and answers a constant."""

import argparse
import os
from concurrent.futures import ThreadPoolExecutor

import grpc

from server.pb import bandit_pb2 as pb


def main() -> None:
    """Serve until killed; the first line printed is the port."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--core", type=int)
    parser.add_argument("--threads", type=int, default=16)
    told = parser.parse_args()
    if told.core is not None:
        os.sched_setaffinity(0, {told.core})
    decision = pb.Decision(
        decision_id="01936c3e-0000-7000-8000-000000000000",
        experiment="bench",
        request_id="request-0000000",
        action=pb.Action(index=5, variant="discount", channel="email", slot="morning"),
        propensity=0.25,
        group=pb.GROUP_BANDIT,
        reason=pb.REASON_POLICY,
        snapshot_version=7,
        sequence=12_345,
    )
    decision.decided_at.GetCurrentTime()
    decision.action.send_at.GetCurrentTime()
    answer = pb.DecideResponse(decision=decision)

    def handle(request: pb.DecideRequest, context: grpc.ServicerContext) -> pb.DecideResponse:  # noqa: ARG001
        return answer

    handler = grpc.unary_unary_rpc_method_handler(
        handle, pb.DecideRequest.FromString, pb.DecideResponse.SerializeToString
    )
    server = grpc.server(ThreadPoolExecutor(told.threads))
    name = "bandit.v1.DecisionService"
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(name, {"Decide": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
