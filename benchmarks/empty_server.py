"""The yardstick: a grpcio sync server that parses requests and answers constants."""

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache

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

    recorded = pb.RecordRewardResponse(disposition=pb.DISPOSITION_RECORDED, sequence=12_345)

    def record(request: pb.RecordRewardRequest, _: grpc.ServicerContext) -> pb.RecordRewardResponse:  # noqa: ARG001
        return recorded

    handlers = {
        "RecordReward": grpc.unary_unary_rpc_method_handler(
            record, pb.RecordRewardRequest.FromString, pb.RecordRewardResponse.SerializeToString
        ),
        "Decide": grpc.unary_unary_rpc_method_handler(
            handle, pb.DecideRequest.FromString, pb.DecideResponse.SerializeToString
        ),
        **_batches(decision),
    }
    server = grpc.server(ThreadPoolExecutor(told.threads))
    name = "bandit.v1.DecisionService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


def _batches(decision: pb.Decision) -> dict[str, "grpc.RpcMethodHandler[bytes, bytes]"]:
    """Give handlers that answer batches of any size with as many constant entries."""

    @cache
    def decisions(n: int) -> pb.BatchDecideResponse:
        return pb.BatchDecideResponse(decisions=[decision] * n)

    @cache
    def packed(n: int) -> pb.BatchDecideResponse:
        wide, narrow = bytes(8 * n), bytes(n)
        columns = pb.PackedDecisions(
            experiment="bench", actions=bytes(4 * n), propensities=wide, decision_ids=bytes(16 * n),
            groups=narrow, reasons=narrow, sequences=wide, snapshot_versions=wide,
            repeated_requests=narrow, decided_at=wide, send_at=wide,
        )  # fmt: skip
        return pb.BatchDecideResponse(packed=columns)

    @cache
    def results(n: int) -> pb.BatchRecordRewardsResponse:
        one = pb.RewardResult(
            event_id="e" * 12, disposition=pb.DISPOSITION_RECORDED, sequence=12_345
        )
        return pb.BatchRecordRewardsResponse(results=[one] * n)

    @cache
    def packed_results(n: int) -> pb.BatchRecordRewardsResponse:
        columns = pb.PackedRewardResults(dispositions=bytes(n), sequences=bytes(8 * n))
        return pb.BatchRecordRewardsResponse(packed=columns)

    def decide(request: pb.BatchDecideRequest, _: grpc.ServicerContext) -> pb.BatchDecideResponse:
        if request.HasField("packed"):
            return packed(len(request.packed.customer_ids))
        return decisions(len(request.requests))

    def record(
        request: pb.BatchRecordRewardsRequest, _: grpc.ServicerContext
    ) -> pb.BatchRecordRewardsResponse:
        if request.HasField("packed"):
            return packed_results(len(request.packed.values) // 8)
        return results(len(request.events))

    return {
        "BatchDecide": grpc.unary_unary_rpc_method_handler(
            decide, pb.BatchDecideRequest.FromString, pb.BatchDecideResponse.SerializeToString
        ),
        "BatchRecordRewards": grpc.unary_unary_rpc_method_handler(
            record,
            pb.BatchRecordRewardsRequest.FromString,
            pb.BatchRecordRewardsResponse.SerializeToString,
        ),
    }


if __name__ == "__main__":
    main()
