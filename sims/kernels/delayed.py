"""Thompson sampling on Beta posteriors while items come and go and feedback is late."""

import numpy as np

from bandit.kernels.compiling import kernel


@kernel
def delayed(
    generator: np.random.Generator, steps: int, items: int, delay: int, replaced: float
) -> float:
    """Give the regret of ``steps`` decisions whose feedback comes every ``delay`` steps.

    With probability ``replaced`` a step, one item makes room for another, whose rate is drawn
    from Beta(4, 4); the prior is Beta(1, 1).
    """
    rates = np.empty(items)
    for i in range(items):
        rates[i] = generator.beta(4.0, 4.0)
    successes, failures = np.ones(items), np.ones(items)
    due_successes, due_failures = np.zeros(items), np.zeros(items)
    regret = 0.0
    for step in range(steps):
        if generator.random() < replaced:
            i = int(generator.random() * items)
            rates[i] = generator.beta(4.0, 4.0)
            successes[i] = failures[i] = 1.0
            due_successes[i] = due_failures[i] = 0.0
        best, chosen = -1.0, 0
        for i in range(items):
            score = generator.beta(successes[i], failures[i])
            if score > best:
                best, chosen = score, i
        regret += rates.max() - rates[chosen]
        if generator.random() < rates[chosen]:
            due_successes[chosen] += 1.0
        else:
            due_failures[chosen] += 1.0
        if (step + 1) % delay == 0:
            successes += due_successes
            failures += due_failures
            due_successes[:] = 0.0
            due_failures[:] = 0.0
    return regret
