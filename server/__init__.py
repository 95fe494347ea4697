"""The service: decisions over gRPC, a durable log, and a learner that folds it."""
